//! Whether the certificates in the files of the configuration are valid now. Reading the configuration has shown already
//! that keys and certificates belong together.

use std::{path::Path, time::Duration};

use super::Findings;
use crate::{
    config::{AdminAccess, Pool, Process},
    snapshot::{EXPIRES_SOON, Time, brief},
    tls::{Dates, Files, dates},
};

/// Checks all files of certificates that the configuration names.
pub(super) fn check(
    pools: &[Pool],
    admin: &AdminAccess,
    process: &Process,
    findings: &mut Findings,
) {
    let mut all: Vec<Files> = Vec::new();
    for pool in pools {
        all.extend(pool.tls.clients.iter().map(|side| side.files.clone()));
        all.extend(pool.tls.backends.iter().map(|side| side.files.clone()));
    }
    let directories = [admin.admin_tls_dir.as_deref(), process.scaler_tls_dir.as_deref()];
    all.extend(directories.into_iter().flatten().map(Files::in_directory));
    let mut files: Vec<_> =
        all.into_iter().flat_map(|files| [files.certificate, files.ca]).flatten().collect();
    files.sort();
    files.dedup();
    for file in files {
        check_file(&file, findings);
    }
}

fn check_file(file: &Path, findings: &mut Findings) {
    let subject = format!("file {}", file.display());
    let certificates = match dates(file) {
        Ok(certificates) => certificates,
        Err(error) => return findings.error(&subject, error.to_string(), "replace the file"),
    };
    let now = Time::now();
    for Dates { subject: name, not_before, not_after } in certificates {
        let (begins, expires) = (Time::from_unix(not_before), Time::from_unix(not_after));
        let left = expires.since(now);
        if left == Duration::ZERO {
            findings.error(
                &subject,
                format!("{name} has expired at {expires}"),
                "renew the certificate",
            );
        } else if begins > now {
            let text = format!(
                "{name} is not valid before {begins}, and this machine's clock is at {now}"
            );
            findings.error(&subject, text, "set the clock, or wait");
        } else if left < EXPIRES_SOON {
            let text = format!("{name} expires in {}, at {expires}", brief(left));
            findings.warning(&subject, text, "renew the certificate");
        } else {
            findings.ok(&subject, format!("{name} is valid for {}", brief(left)));
        }
    }
}
