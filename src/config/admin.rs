//! The settings of TLS on the admin port, and of who may use the port.

use std::path::PathBuf;

use super::settings::Settings;
use crate::{access::Pattern, tls};

/// TLS on the admin port, and who may do what there by a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdminAccess {
    /// Where the certificates of the admin port are, if it speaks TLS.
    pub tls_dir: Option<PathBuf>,
    /// Names in the certificates of clients that may change things.
    pub clients: Vec<Pattern>,
    /// Whether reading takes a token or a certificate.
    pub restrict_reading: bool,
}

impl AdminAccess {
    /// Checks the settings, and that the files can be used now.
    pub(super) fn check(settings: &Settings, problems: &mut Vec<String>) -> Self {
        let tls_dir = settings.admin_tls_dir.as_deref().map(|path| PathBuf::from(path.trim()));
        if let Some(directory) = &tls_dir
            && let Err(error) = tls::Server::for_admin_port(directory)
        {
            problems.push(format!("admin-tls-dir: {error}"));
        }
        let has_authorities =
            tls_dir.as_deref().is_some_and(|path| tls::Files::in_directory(path).ca.is_some());
        let mut clients = Vec::new();
        for (index, text) in settings.admin_client.iter().enumerate() {
            match Pattern::parse(text.trim()) {
                Ok(client) => clients.push(client),
                Err(problem) => problems.push(format!("admin-client[{index}]: {problem}")),
            }
        }
        if !clients.is_empty() && !has_authorities {
            problems.push(
                "admin-client: says nothing without an admin-tls-dir that has ca.crt or ca.pem, whose CA \
                 certificates sign those of clients"
                    .to_owned(),
            );
        }
        let restrict_reading = settings.admin_restrict_reading.unwrap_or_default();
        if restrict_reading && settings.admin_token_file.is_none() && !has_authorities {
            problems.push(
                "admin-restrict-reading: nobody could read without an admin-token-file or an admin-tls-dir that \
                 has ca.crt or ca.pem"
                    .to_owned(),
            );
        }
        Self { tls_dir, clients, restrict_reading }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_could_not_work_says_what_is_missing() {
        let none = Settings::default;
        let own = tempfile::tempdir().expect("a directory");
        let pair = rcgen::generate_simple_self_signed(["x.test".to_owned()]).expect("a pair");
        std::fs::write(own.path().join("tls.crt"), pair.cert.pem()).expect("written");
        let key = pair.signing_key.serialize_pem();
        std::fs::write(own.path().join("tls.key"), key).expect("written");
        let dir = own.path().display().to_string();
        let clients = || vec!["operator".to_owned()];
        for (settings, told) in [
            (Settings { admin_tls_dir: Some("/no/such".into()), ..none() }, "admin-tls-dir: "),
            (Settings { admin_client: clients(), ..none() }, "admin-client: says nothing"),
            (
                Settings { admin_tls_dir: Some(dir), admin_client: clients(), ..none() },
                "admin-client: says nothing",
            ),
            (Settings { admin_client: vec![String::new()], ..none() }, "admin-client[0]: must"),
            (
                Settings { admin_restrict_reading: Some(true), ..none() },
                "admin-restrict-reading: nobody",
            ),
        ] {
            let mut problems = Vec::new();
            AdminAccess::check(&settings, &mut problems);
            assert!(
                problems.len() == 1 && problems[0].starts_with(told),
                "{told} is not in {problems:?}"
            );
        }
    }
}
