//! The settings of TLS, towards clients and towards daemons.

use std::path::PathBuf;

use serde::Serialize;

use super::value::{check, parse_choice, text};
use crate::tls::{self, ClientAuth, Files, ServerNames};

/// The settings as they are written.
#[derive(Debug, Default, Clone, Serialize, clap::Args)]
#[command(next_help_heading = "TLS")]
#[serde(rename_all = "kebab-case")]
pub struct TlsSettings {
    /// Directory with the certificates for TLS to clients: tls.crt, tls.key and ca.crt, or cert.pem, key.pem and
    /// ca.pem; read again when they change [default: none, clients connect without TLS].
    #[arg(long, env = "BUILDKIT_LB_TLS_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_dir: Option<String>,
    /// File with the certificate that clients are shown, in place of the directory's.
    #[arg(long, env = "BUILDKIT_LB_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<String>,
    /// File with the key of that certificate.
    #[arg(long, env = "BUILDKIT_LB_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
    /// File with the CA certificates that sign those of clients, in place of the directory's.
    #[arg(long, env = "BUILDKIT_LB_TLS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<String>,
    /// Whether clients show certificates: off, optional or required [default: required].
    #[arg(long, env = "BUILDKIT_LB_TLS_CLIENT_AUTH", value_name = "WORD")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_auth: Option<String>,
    /// Directory with the certificates for TLS to daemons: the CA, and the certificate and key that the proxy
    /// shows; names as in --tls-dir [default: none, daemons are reached without TLS].
    #[arg(long, env = "BUILDKIT_LB_BACKEND_TLS_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_tls_dir: Option<String>,
    /// File with the certificate that daemons are shown, in place of the directory's.
    #[arg(long, env = "BUILDKIT_LB_BACKEND_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_tls_cert: Option<String>,
    /// File with the key of that certificate.
    #[arg(long, env = "BUILDKIT_LB_BACKEND_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_tls_key: Option<String>,
    /// File with the CA certificates that sign those of daemons, in place of the directory's.
    #[arg(long, env = "BUILDKIT_LB_BACKEND_TLS_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_tls_ca: Option<String>,
    /// Name that the certificates of all daemons have; {name} in it stands for the backend's name [default: the
    /// host of --backend, the name that dns:// asks for, SERVICE.NAMESPACE.svc of kubernetes://].
    #[arg(long, env = "BUILDKIT_LB_BACKEND_TLS_SERVER_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_tls_server_name: Option<String>,
}

impl TlsSettings {
    /// Sets one key; the value again if there is no such key here.
    pub(super) fn set(
        &mut self,
        path: &str,
        key: &str,
        value: toml::Value,
        problems: &mut Vec<String>,
    ) -> Option<toml::Value> {
        let setting = match key {
            "tls-dir" => &mut self.tls_dir,
            "tls-cert" => &mut self.tls_cert,
            "tls-key" => &mut self.tls_key,
            "tls-ca" => &mut self.tls_ca,
            "tls-client-auth" => &mut self.tls_client_auth,
            "backend-tls-dir" => &mut self.backend_tls_dir,
            "backend-tls-cert" => &mut self.backend_tls_cert,
            "backend-tls-key" => &mut self.backend_tls_key,
            "backend-tls-ca" => &mut self.backend_tls_ca,
            "backend-tls-server-name" => &mut self.backend_tls_server_name,
            _ => return Some(value),
        };
        *setting = text(path, value, problems);
        None
    }

    /// These settings where `over` has none. A directory or file of one side hides all files of that side
    /// below: certificates of two places do not belong together.
    #[must_use]
    pub(super) fn under(self, over: Self) -> Self {
        let hides = |named: Named<'_>| named.key().is_some();
        let (clients, backends) = (hides(over.files()), hides(over.backend_files()));
        let keep = |own: Option<String>, over: Option<String>, hidden: bool| {
            over.or(own.filter(|_| !hidden))
        };
        Self {
            tls_dir: keep(self.tls_dir, over.tls_dir, clients),
            tls_cert: keep(self.tls_cert, over.tls_cert, clients),
            tls_key: keep(self.tls_key, over.tls_key, clients),
            tls_ca: keep(self.tls_ca, over.tls_ca, clients),
            tls_client_auth: over.tls_client_auth.or(self.tls_client_auth),
            backend_tls_dir: keep(self.backend_tls_dir, over.backend_tls_dir, backends),
            backend_tls_cert: keep(self.backend_tls_cert, over.backend_tls_cert, backends),
            backend_tls_key: keep(self.backend_tls_key, over.backend_tls_key, backends),
            backend_tls_ca: keep(self.backend_tls_ca, over.backend_tls_ca, backends),
            backend_tls_server_name: over.backend_tls_server_name.or(self.backend_tls_server_name),
        }
    }

    /// The settings that name files for clients.
    fn files(&self) -> Named<'_> {
        Named([
            ("tls-dir", self.tls_dir.as_deref()),
            ("tls-cert", self.tls_cert.as_deref()),
            ("tls-key", self.tls_key.as_deref()),
            ("tls-ca", self.tls_ca.as_deref()),
        ])
    }

    /// The settings that name files for daemons.
    fn backend_files(&self) -> Named<'_> {
        Named([
            ("backend-tls-dir", self.backend_tls_dir.as_deref()),
            ("backend-tls-cert", self.backend_tls_cert.as_deref()),
            ("backend-tls-key", self.backend_tls_key.as_deref()),
            ("backend-tls-ca", self.backend_tls_ca.as_deref()),
        ])
    }
}

/// The settings of one side that name a directory, a certificate, a key and authorities.
#[derive(Debug, Clone, Copy)]
struct Named<'a>([(&'static str, Option<&'a str>); 4]);

impl Named<'_> {
    /// The first setting that is there.
    fn key(&self) -> Option<&'static str> {
        self.0.iter().find(|(_key, path)| path.is_some()).map(|(key, _path)| *key)
    }

    /// The files that they name.
    fn files(&self) -> Files {
        let [directory, certificate, key, ca] =
            self.0.map(|(_key, path)| path.map(|path| PathBuf::from(path.trim())));
        let in_directory = directory.map(|directory| Files::in_directory(&directory));
        Files { certificate, key, ca }.over(in_directory.unwrap_or_default())
    }
}

/// The checked settings of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Towards clients, if they speak TLS.
    pub clients: Option<ClientSide>,
    /// Towards daemons, if they speak TLS.
    pub backends: Option<BackendSide>,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSide {
    /// Where the certificates are.
    pub files: Files,
    /// Whether clients show theirs.
    pub client_auth: ClientAuth,
}

/// TLS towards daemons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSide {
    /// Where the certificates are.
    pub files: Files,
    /// Which names those of daemons have.
    pub server_names: ServerNames,
}

impl Tls {
    /// Checks the settings, and that their files can be used now.
    pub(super) fn check(path: &str, settings: &TlsSettings, problems: &mut Vec<String>) -> Self {
        Self {
            clients: check_clients(path, settings, problems),
            backends: check_backends(path, settings, problems),
        }
    }

    /// The settings that give this.
    pub(super) fn settings(&self) -> TlsSettings {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let clients = self.clients.as_ref();
        let own = clients.map(|clients| clients.files.clone()).unwrap_or_default();
        let backends = self.backends.as_ref();
        let theirs = backends.map(|backends| backends.files.clone()).unwrap_or_default();
        let names = backends.and_then(|backends| backends.server_names.text());
        TlsSettings {
            tls_dir: None,
            tls_cert: text(&own.certificate),
            tls_key: text(&own.key),
            tls_ca: text(&own.ca),
            tls_client_auth: clients.map(|clients| clients.client_auth.to_string()),
            backend_tls_dir: None,
            backend_tls_cert: text(&theirs.certificate),
            backend_tls_key: text(&theirs.key),
            backend_tls_ca: text(&theirs.ca),
            backend_tls_server_name: names.map(str::to_owned),
        }
    }
}

fn check_clients(
    path: &str,
    settings: &TlsSettings,
    problems: &mut Vec<String>,
) -> Option<ClientSide> {
    let key = format!("{path}tls-client-auth");
    let client_auth = check(settings.tls_client_auth.as_deref(), &key, problems, |text| {
        parse_choice(text, "off, optional or required")
    });
    let Some(first) = settings.files().key() else {
        if settings.tls_client_auth.is_some() {
            problems.push(format!("{key}: says nothing without tls-dir or tls-cert"));
        }
        return None;
    };
    let files = settings.files().files();
    let side = ClientSide { files, client_auth: client_auth.unwrap_or_default() };
    if let Err(error) = tls::Server::load(side.files.clone(), side.client_auth) {
        let hint = match error {
            tls::TlsError::NoAuthorities => ", or tls-client-auth = off or optional",
            _ => "",
        };
        problems.push(format!("{path}{first}: {error}{hint}"));
    }
    Some(side)
}

fn check_backends(
    path: &str,
    settings: &TlsSettings,
    problems: &mut Vec<String>,
) -> Option<BackendSide> {
    let name = settings.backend_tls_server_name.as_deref();
    let key = format!("{path}backend-tls-server-name");
    let server_names = check(name, &key, problems, str::parse);
    let Some(first) = settings.backend_files().key() else {
        if name.is_some() {
            problems.push(format!("{key}: says nothing without backend-tls-dir or backend-tls-ca"));
        }
        return None;
    };
    let files = settings.backend_files().files();
    let side = BackendSide { files, server_names: server_names.unwrap_or_default() };
    if let Err(error) = tls::Client::load(side.files.clone(), side.server_names.clone()) {
        problems.push(format!("{path}{first}: {error}"));
    }
    Some(side)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Writes a certificate that signs itself, and its key, under these names.
    fn write(directory: &Path, [certificate, key, ca]: [&str; 3]) {
        let pair = rcgen::generate_simple_self_signed(["x.test".to_owned()]).expect("a pair");
        let pem = pair.cert.pem();
        fs::write(directory.join(certificate), &pem).expect("written");
        fs::write(directory.join(ca), &pem).expect("written");
        fs::write(directory.join(key), pair.signing_key.serialize_pem()).expect("written");
    }

    fn check(settings: &TlsSettings) -> Result<Tls, Vec<String>> {
        let mut problems = Vec::new();
        let tls = Tls::check("", settings, &mut problems);
        if problems.is_empty() { Ok(tls) } else { Err(problems) }
    }

    #[test]
    fn a_directory_may_have_either_habit_of_names_and_the_files_are_printed() {
        for names in [["tls.crt", "tls.key", "ca.crt"], ["cert.pem", "key.pem", "ca.pem"]] {
            let directory = tempfile::tempdir().expect("a directory");
            write(directory.path(), names);
            let dir = Some(directory.path().display().to_string());
            let settings = TlsSettings {
                tls_dir: dir.clone(),
                backend_tls_dir: dir,
                backend_tls_server_name: Some("{name}.builds.svc".to_owned()),
                ..TlsSettings::default()
            };
            let tls = check(&settings).expect("valid");
            let clients = tls.clients.clone().expect("TLS to clients");
            assert_eq!(clients.client_auth, ClientAuth::Required);
            assert_eq!(clients.files.ca, Some(directory.path().join(names[2])));
            assert_eq!(check(&tls.settings()), Ok(tls));
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_setting() {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), ["tls.crt", "tls.key", "ca.crt"]);
        fs::remove_file(directory.path().join("ca.crt")).expect("it is there");
        let file = |name: &str| Some(directory.path().join(name).display().to_string());
        let none = TlsSettings::default;
        let cases = [
            (TlsSettings { tls_dir: file(""), ..none() }, "tls-dir: a file with the CA"),
            (TlsSettings { tls_dir: file("no"), ..none() }, "tls-dir: a certificate and its key"),
            (
                TlsSettings { tls_cert: file("tls.crt"), ..none() },
                "tls-cert: a certificate and its",
            ),
            (TlsSettings { backend_tls_ca: file("x"), ..none() }, "backend-tls-ca: cannot read"),
            (TlsSettings { backend_tls_ca: file("tls.key"), ..none() }, "backend-tls-ca: `"),
            (TlsSettings { tls_client_auth: file(""), ..none() }, "tls-client-auth: `"),
            (
                TlsSettings { backend_tls_server_name: Some("a b".into()), ..none() },
                "backend-tls-server-name: `a b`",
            ),
        ];
        for (settings, problem) in cases {
            let problems = check(&settings).expect_err(problem);
            assert!(problems[0].starts_with(problem), "{problems:?}");
        }
        let off = TlsSettings { tls_client_auth: Some("off".into()), tls_dir: file(""), ..none() };
        assert!(check(&off).is_ok(), "without client certificates no CA is needed");
    }

    #[test]
    fn files_of_two_places_are_not_mixed() {
        let settings = |dir: &str| TlsSettings {
            tls_dir: Some(dir.to_owned()),
            tls_client_auth: Some("off".to_owned()),
            ..TlsSettings::default()
        };
        let over = TlsSettings { tls_cert: Some("c".to_owned()), ..TlsSettings::default() };
        let both = settings("common").under(over);
        assert_eq!((both.tls_dir, both.tls_cert.as_deref()), (None, Some("c")));
        assert_eq!(both.tls_client_auth.as_deref(), Some("off"));
        assert_eq!(settings("a").under(settings("b")).tls_dir.as_deref(), Some("b"));
    }
}
