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

/// The largest file: a bundle of all public authorities is a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// The names of certificate, key and authorities in a directory: as Kubernetes and cert-manager write them, and
/// as BuildKit's own examples do.
const NAMES: [[&str; 3]; 2] = [["tls.crt", "tls.key", "ca.crt"], ["cert.pem", "key.pem", "ca.pem"]];

/// Why files are of no use for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a device, a pipe or a directory.
    #[error("`{}` is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It is longer than any bundle of certificates.
    #[error("`{}` is larger than 1 MiB, so it holds something else than certificates", .0.display())]
    TooLarge(PathBuf),
    /// What should be in it is not.
    #[error("`{}` has no {what} in PEM", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// Something in it cannot be understood.
    #[error("`{}` has a {what} that is broken: {cause}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is broken.
        what: &'static str,
        /// How.
        cause: String,
    },
    /// Certificate and key belong to two different pairs.
    #[error("the key `{}` is not that of the certificate `{}`", key.display(), certificate.display())]
    Mismatch {
        /// The file of the certificate.
        certificate: PathBuf,
        /// That of the key.
        key: PathBuf,
    },
    /// The certificate or the key is missing.
    #[error("a certificate and its key are needed, each without the other is of no use")]
    NoPair,
    /// The authorities are missing.
    #[error("a file with the CA certificates is needed to verify the other side")]
    NoAuthorities,
    /// TLS cannot be set up with them.
    #[error("TLS cannot use these certificates: {0}")]
    Unusable(String),
}

/// Where the certificates of one side are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Its own certificate, and those between it and its authority.
    pub certificate: Option<PathBuf>,
    /// The key of the first of these.
    pub key: Option<PathBuf>,
    /// The authorities that it trusts.
    pub ca: Option<PathBuf>,
}

impl Files {
    /// Those that there are in `directory`, in either habit of names.
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

    /// These files, and those of `under` where there are none.
    #[must_use]
    pub fn over(self, under: Self) -> Self {
        Self {
            certificate: self.certificate.or(under.certificate),
            key: self.key.or(under.key),
            ca: self.ca.or(under.ca),
        }
    }

    /// Reads all of them.
    pub(super) fn read(&self) -> Result<Contents, TlsError> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(read_bounded).transpose();
        Ok(Contents {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
            ca: read(&self.ca)?,
        })
    }
}

/// What is in the files, as it was read.
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
    /// The certificate and its key, if there are any. The key is the certificate's own.
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

    /// The authorities, if there are any.
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

/// Every certificate in a file; at least one.
fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
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

fn read_bounded(path: &Path) -> Result<Vec<u8>, TlsError> {
    regular_file::read(path, MAX_FILE).map_err(|why| {
        let path = path.to_owned();
        match why {
            Unreadable::Failed(source) => TlsError::Read { path, source },
            Unreadable::NotRegular => TlsError::NotAFile(path),
            Unreadable::TooLong => TlsError::TooLarge(path),
        }
    })
}
