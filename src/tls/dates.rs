//! When the certificates in a file are valid, for a check before anything uses them.

use std::path::Path;

use x509_parser::parse_x509_certificate;

use super::files::{TlsError, certificates, read_bounded};

/// When one certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dates {
    /// The subject of the certificate.
    pub subject: String,
    /// The beginning.
    pub not_before: i64,
    /// The end.
    pub not_after: i64,
}

/// The dates of all certificates in `file`, in their order.
///
/// # Errors
/// The file cannot be read, or has no certificates.
pub fn dates(file: &Path) -> Result<Vec<Dates>, TlsError> {
    let all = certificates(&read_bounded(file)?, file)?;
    let dates = all.iter().map(|der| {
        let (_rest, certificate) =
            parse_x509_certificate(der).map_err(|error| TlsError::Broken {
                path: file.to_owned(),
                what: "certificate",
                cause: error.to_string(),
            })?;
        let validity = certificate.validity();
        Ok(Dates {
            subject: certificate.subject().to_string(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    });
    dates.collect()
}
