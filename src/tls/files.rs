//! The files of one side: its certificate and key, and the authorities that it trusts.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use super::provider;
use crate::regular_file::{self, Unreadable};

/// The largest file in bytes. A bundle of all public authorities is a quarter of this.
const MAX_FILE: u64 = 1 << 20;

/// The names of certificate, key and authorities in a directory: first those of Kubernetes and cert-manager, then
/// those of BuildKit's examples.
const NAMES: [[&str; 3]; 2] = [["tls.crt", "tls.key", "ca.crt"], ["cert.pem", "key.pem", "ca.pem"]];

/// Why files cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is a device, a pipe or a directory.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// The file is larger than any bundle of certificates.
    #[error("`{}` is larger than 1 MiB, more than any file of certificates", .0.display())]
    TooLarge(PathBuf),
    /// The file does not contain what it should.
    #[error("`{}` has no {what} in PEM", path.display())]
    Empty {
        /// The path of the file.
        path: PathBuf,
        /// What is missing in the file.
        what: &'static str,
    },
    /// A part of the file cannot be parsed.
    #[error("`{}` has a {what} that cannot be parsed: {cause}", path.display())]
    Broken {
        /// The path of the file.
        path: PathBuf,
        /// What cannot be parsed.
        what: &'static str,
        /// The error of the parser.
        cause: String,
    },
    /// The key does not belong to the certificate.
    #[error("the key `{}` does not belong to the certificate `{}`", key.display(), certificate.display())]
    Mismatch {
        /// The path of the certificate.
        certificate: PathBuf,
        /// The path of the key.
        key: PathBuf,
    },
    /// Only one of certificate and key is configured.
    #[error("a certificate and its key must be configured together")]
    NoPair,
    /// No file of authorities is configured.
    #[error("a file of CA certificates is needed to verify the other side")]
    NoAuthorities,
    /// The TLS library refuses the certificates.
    #[error("TLS cannot use these certificates: {0}")]
    Unusable(String),
}

/// The paths of the certificates of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// The own certificate, followed by those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// The key of the own certificate.
    pub key: Option<PathBuf>,
    /// The certificates of the authorities that this side trusts.
    pub ca: Option<PathBuf>,
}

impl Files {
    /// The files that exist in `directory`, under either set of names.
    pub fn in_directory(directory: &Path) -> Self {
        let files = |names: [&str; 3]| {
            let [certificate, key, ca] = names.map(|name| Some(directory.join(name)));
            Self { certificate, key, ca }.that_exist()
        };
        let [first, second] = NAMES.map(files);
        if first == Self::default() { second } else { first }
    }

    fn that_exist(self) -> Self {
        let there = |file: Option<PathBuf>| file.filter(|file| file.exists());
        Self { certificate: there(self.certificate), key: there(self.key), ca: there(self.ca) }
    }

    /// These files and, for those that are missing, the files of `under`.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            certificate: self.certificate.or(under.certificate),
            key: self.key.or(under.key),
            ca: self.ca.or(under.ca),
        }
    }

    /// Reads all files.
    pub(super) fn read(&self) -> Result<Contents, TlsError> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(read_bounded).transpose();
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            ca: read(&self.ca)?,
        })
    }
}

/// The contents of the files.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Contents {
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    ca: Option<Vec<u8>>,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Contents {
    /// The certificate and its key. `None` if neither is configured.
    pub(super) fn pair(&self, files: &Files) -> Result<Option<CertifiedKey>, TlsError> {
        let (certificate, certificate_path, key, key_path) =
            match (&self.certificate, &files.certificate, &self.key, &files.key) {
                (None, _, None, _) => return Ok(None),
                (Some(certificate), Some(at), Some(key), Some(key_at)) => {
                    (certificate, at, key, key_at)
                }
                _ => return Err(TlsError::NoPair),
            };
        let chain = certificates(certificate, certificate_path)?;
        let broken = |what, path: &Path, cause: String| {
            Err(TlsError::Broken { path: path.to_owned(), what, cause })
        };
        let key = match PrivateKeyDer::from_pem_slice(key) {
            Ok(key) => key,
            Err(rustls::pki_types::pem::Error::NoItemsFound) => {
                return Err(TlsError::Empty { path: key_path.clone(), what: "private key" });
            }
            Err(error) => return broken("private key", key_path, error.to_string()),
        };
        match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(pair) => Ok(Some(pair)),
            Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch {
                certificate: certificate_path.clone(),
                key: key_path.clone(),
            }),
            Err(rustls::Error::InvalidCertificate(error)) => {
                broken("certificate", certificate_path, error.to_string())
            }
            Err(error) => broken("private key", key_path, error.to_string()),
        }
    }

    /// The authorities. `None` if none are configured.
    pub(super) fn authorities(
        &self,
        files: &Files,
    ) -> Result<Option<Arc<RootCertStore>>, TlsError> {
        let (Some(pem), Some(path)) = (&self.ca, &files.ca) else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem, path)? {
            roots.add(certificate).map_err(|error| TlsError::Broken {
                path: path.clone(),
                what: "certificate",
                cause: error.to_string(),
            })?;
        }
        Ok(Some(Arc::new(roots)))
    }
}

/// Every certificate in a file, of which there must be one at least.
pub(super) fn certificates(
    pem: &[u8],
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => {
            Err(TlsError::Empty { path: path.to_owned(), what: "certificate" })
        }
        Ok(all) => Ok(all),
        Err(error) => Err(TlsError::Broken {
            path: path.to_owned(),
            what: "certificate",
            cause: error.to_string(),
        }),
    }
}

pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, TlsError> {
    regular_file::read(path, MAX_FILE).map_err(|why| {
        let path = path.to_owned();
        match why {
            Unreadable::Failed(source) => TlsError::Read { path, source },
            Unreadable::NotRegular => TlsError::NotAFile(path),
            Unreadable::TooLong => TlsError::TooLarge(path),
        }
    })
}
