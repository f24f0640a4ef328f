//! The settings of TLS on the admin port, and of who may use the port.

use serde::{Deserialize, Serialize};

use super::{text::list, value::FilePath};
use crate::{
    access::Pattern,
    tls::{Files, Server},
};

/// TLS on the admin port, and what a certificate allows there. A field is a key of the file, a flag and a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct AdminAccess {
    /// Directory with the certificates for TLS on the admin port, with the same file names as --tls-dir. If the
    /// directory has a ca.crt, clients may show a certificate [default: none, clients connect without TLS].
    #[arg(help_heading = "Admin port", long, value_name = "DIR")]
    pub admin_tls_dir: Option<FilePath>,
    /// Name of a client that may drain and cordon on the admin port, as its certificate has it; * stands for any
    /// characters. Repeatable [default: none].
    #[arg(help_heading = "Admin port", long, value_name = "NAME", value_parser = Pattern::parse)]
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub admin_client: Vec<Pattern>,
    /// Answer requests for metrics and status on the admin port only to clients that show a token or a
    /// certificate. Probes need neither.
    #[arg(help_heading = "Admin port", long)]
    pub admin_restrict_reading: bool,
}

impl AdminAccess {
    /// Checks that the files can be used now, and that somebody can read.
    pub(super) fn check(&self, has_tokens: bool, problems: &mut Vec<String>) {
        let directory = self.admin_tls_dir.as_deref();
        if let Some(directory) = directory
            && let Err(error) = Server::for_admin_port(directory)
        {
            problems.push(format!("admin-tls-dir: {error}"));
        }
        let has_authorities = directory.is_some_and(|path| Files::in_directory(path).ca.is_some());
        if !self.admin_client.is_empty() && !has_authorities {
            problems.push(
                "admin-client: has no effect without an admin-tls-dir that has ca.crt or ca.pem, whose CA \
                 certificates sign those of clients"
                    .to_owned(),
            );
        }
        if self.admin_restrict_reading && !has_tokens && !has_authorities {
            problems.push(
                "admin-restrict-reading: nobody can read without an admin-token-file or an admin-tls-dir that \
                 has ca.crt or ca.pem"
                    .to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_could_not_work_says_what_is_missing() {
        let none = || AdminAccess {
            admin_tls_dir: None,
            admin_client: Vec::new(),
            admin_restrict_reading: false,
        };
        let own = tempfile::tempdir().expect("a directory");
        let pair = rcgen::generate_simple_self_signed(["x.test".to_owned()]).expect("a pair");
        std::fs::write(own.path().join("tls.crt"), pair.cert.pem()).expect("written");
        let key = pair.signing_key.serialize_pem();
        std::fs::write(own.path().join("tls.key"), key).expect("written");
        let dir = |path: &str| Some(path.parse().expect("a path"));
        let own = dir(&own.path().display().to_string());
        let admin_client = vec![Pattern::parse("operator").expect("a pattern")];
        for (access, told) in [
            (AdminAccess { admin_tls_dir: dir("/no/such"), ..none() }, "admin-tls-dir: "),
            (
                AdminAccess { admin_client: admin_client.clone(), ..none() },
                "admin-client: has no effect",
            ),
            (
                AdminAccess { admin_tls_dir: own, admin_client, ..none() },
                "admin-client: has no effect",
            ),
            (
                AdminAccess { admin_restrict_reading: true, ..none() },
                "admin-restrict-reading: nobody",
            ),
        ] {
            let mut problems = Vec::new();
            access.check(false, &mut problems);
            assert!(
                problems.len() == 1 && problems[0].starts_with(told),
                "{told} is not in {problems:?}"
            );
        }
    }
}
