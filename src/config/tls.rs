//! The settings of TLS to clients and to daemons.

use serde::{Deserialize, Serialize};

use super::value::FilePath;
use crate::tls::{self, ClientAuth, Files, ServerNames};

/// The keys that name files: for clients, and for daemons.
pub(super) const FILES: [[&str; 4]; 2] = [
    ["tls-dir", "tls-cert", "tls-key", "tls-ca"],
    ["backend-tls-dir", "backend-tls-cert", "backend-tls-key", "backend-tls-ca"],
];

/// The settings of TLS before they are checked. A field is a key of the file, a flag and a variable.
#[derive(Debug, Default, Clone, Serialize, Deserialize, clap::Args)]
#[command(next_help_heading = "TLS")]
#[serde(rename_all = "kebab-case")]
pub(super) struct TlsSettings {
    /// Directory with the certificates for TLS to clients: tls.crt, tls.key and ca.crt, or cert.pem, key.pem and
    /// ca.pem. The files are read again when they change [default: none, clients connect without TLS].
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<FilePath>,
    /// File with the certificate for clients, in place of the one in --tls-dir.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<FilePath>,
    /// File with the key of that certificate.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<FilePath>,
    /// File with the CA certificates that sign those of clients, in place of the ones in --tls-dir.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<FilePath>,
    /// Whether clients show certificates: off, optional or required [default: required].
    #[arg(long, value_name = "WORD")]
    pub tls_client_auth: Option<ClientAuth>,
    /// Directory with the certificates for TLS to daemons: the CA certificates, and the proxy's own certificate and key,
    /// with the same file names as --tls-dir [default: none, daemons are reached without TLS].
    #[arg(long, value_name = "DIR")]
    pub backend_tls_dir: Option<FilePath>,
    /// File with the proxy's certificate for daemons, in place of the one in --backend-tls-dir.
    #[arg(long, value_name = "FILE")]
    pub backend_tls_cert: Option<FilePath>,
    /// File with the key of that certificate.
    #[arg(long, value_name = "FILE")]
    pub backend_tls_key: Option<FilePath>,
    /// File with the CA certificates that sign those of daemons, in place of the ones in --backend-tls-dir.
    #[arg(long, value_name = "FILE")]
    pub backend_tls_ca: Option<FilePath>,
    /// Name that the certificate of every daemon must have. {name} in it stands for the backend's name [default: the host of
    /// --backend, the name that dns:// asks for, SERVICE.NAMESPACE.svc of kubernetes://].
    #[arg(long, value_name = "NAME")]
    pub backend_tls_server_name: Option<ServerNames>,
}

impl TlsSettings {
    /// The files for clients.
    fn files(&self) -> Named<'_> {
        Named([&self.tls_dir, &self.tls_cert, &self.tls_key, &self.tls_ca])
    }

    /// The files for daemons.
    fn backend_files(&self) -> Named<'_> {
        Named([
            &self.backend_tls_dir,
            &self.backend_tls_cert,
            &self.backend_tls_key,
            &self.backend_tls_ca,
        ])
    }
}

/// A directory, a certificate, a key and authorities, in the order of [`FILES`].
#[derive(Debug, Clone, Copy)]
struct Named<'a>([&'a Option<FilePath>; 4]);

impl Named<'_> {
    /// The first of `keys` that names a file.
    fn first(&self, keys: [&'static str; 4]) -> Option<&'static str> {
        keys.into_iter().zip(self.0).find(|(_key, path)| path.is_some()).map(|(key, _path)| key)
    }

    /// The files that the settings name.
    fn files(&self) -> Files {
        let [directory, certificate, key, ca] =
            self.0.map(|path| path.as_ref().map(|FilePath(path)| path.clone()));
        let in_directory = directory.map(|directory| Files::in_directory(&directory));
        Files { certificate, key, ca }.over(in_directory.unwrap_or_default())
    }
}

/// The checked settings of TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// TLS to clients; `None` if clients connect without TLS.
    pub clients: Option<ClientSide>,
    /// TLS to daemons; `None` if daemons are reached without TLS.
    pub backends: Option<BackendSide>,
}

/// TLS to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSide {
    /// Where the certificates are.
    pub files: Files,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
}

/// TLS to daemons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSide {
    /// Where the certificates are.
    pub files: Files,
    /// The names that the certificates of daemons must have.
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

    /// The settings that give these, with each file of a directory by its own name.
    pub(super) fn settings(&self) -> TlsSettings {
        let own = self.clients.as_ref().map(|clients| clients.files.clone()).unwrap_or_default();
        let theirs = self.backends.as_ref().map(|backends| backends.files.clone());
        let theirs = theirs.unwrap_or_default();
        let names = self.backends.as_ref().map(|backends| backends.server_names.clone());
        TlsSettings {
            tls_dir: None,
            tls_cert: own.certificate.map(FilePath),
            tls_key: own.key.map(FilePath),
            tls_ca: own.ca.map(FilePath),
            tls_client_auth: self.clients.as_ref().map(|clients| clients.client_auth),
            backend_tls_dir: None,
            backend_tls_cert: theirs.certificate.map(FilePath),
            backend_tls_key: theirs.key.map(FilePath),
            backend_tls_ca: theirs.ca.map(FilePath),
            backend_tls_server_name: names.filter(|names| names.text().is_some()),
        }
    }
}

fn check_clients(
    path: &str,
    settings: &TlsSettings,
    problems: &mut Vec<String>,
) -> Option<ClientSide> {
    let Some(first) = settings.files().first(FILES[0]) else {
        if settings.tls_client_auth.is_some() {
            let text = "has no effect without tls-dir or tls-cert";
            problems.push(format!("{path}tls-client-auth: {text}"));
        }
        return None;
    };
    let client_auth = settings.tls_client_auth.unwrap_or_default();
    let side = ClientSide { files: settings.files().files(), client_auth };
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
    let Some(first) = settings.backend_files().first(FILES[1]) else {
        if settings.backend_tls_server_name.is_some() {
            let text = "has no effect without backend-tls-dir or backend-tls-ca";
            problems.push(format!("{path}backend-tls-server-name: {text}"));
        }
        return None;
    };
    let server_names = settings.backend_tls_server_name.clone().unwrap_or_default();
    let side = BackendSide { files: settings.backend_files().files(), server_names };
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
            let dir = Some(FilePath(directory.path().to_owned()));
            let settings = TlsSettings {
                tls_dir: dir.clone(),
                backend_tls_dir: dir,
                backend_tls_server_name: Some("{name}.builds.svc".parse().expect("a name")),
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
        let file = |name: &str| Some(FilePath(directory.path().join(name)));
        let none = TlsSettings::default;
        let off = Some(ClientAuth::Off);
        let cases = [
            (TlsSettings { tls_dir: file(""), ..none() }, "tls-dir: a file of CA"),
            (TlsSettings { tls_dir: file("no"), ..none() }, "tls-dir: a certificate and its key"),
            (
                TlsSettings { tls_cert: file("tls.crt"), ..none() },
                "tls-cert: a certificate and its",
            ),
            (TlsSettings { backend_tls_ca: file("x"), ..none() }, "backend-tls-ca: cannot read"),
            (TlsSettings { backend_tls_ca: file("tls.key"), ..none() }, "backend-tls-ca: `"),
            (TlsSettings { tls_client_auth: off, ..none() }, "tls-client-auth: has no effect"),
        ];
        for (settings, problem) in cases {
            let problems = check(&settings).expect_err(problem);
            assert!(problems[0].starts_with(problem), "{problems:?}");
        }
        let off = TlsSettings { tls_client_auth: off, tls_dir: file(""), ..none() };
        assert!(check(&off).is_ok(), "without client certificates no CA is needed");
    }
}
