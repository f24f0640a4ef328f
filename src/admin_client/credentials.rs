//! What an operator shows to a proxy, and how the proxy's certificate is checked.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::ClientConfig;

use super::HEADING;
use crate::{
    tls::{self, TlsError},
    token::{AdminTokens, TokenError, TokenList as _},
};

/// The flags about tokens and certificates.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CredentialFlags {
    /// File with the admin token of the proxies.
    #[arg(help_heading = HEADING, long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Directory with the CA certificates for the proxies' admin ports, if these use TLS, and with an optional
    /// certificate and key to show to them. The file names are those of --tls-dir.
    #[arg(help_heading = HEADING, long, value_name = "DIR")]
    proxy_tls_dir: Option<PathBuf>,
    /// Name in the certificates of the proxies' admin ports [default: the host].
    #[arg(help_heading = HEADING, long, value_name = "NAME")]
    proxy_tls_server_name: Option<String>,
}

/// What to show to a proxy.
#[derive(Default)]
pub struct Credentials {
    /// The admin token.
    pub(super) token: Option<String>,
    /// The certificates for the TLS handshake, if the admin port uses TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The name in the certificate of the admin port. `None` if it is the host.
    pub(super) server_name: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Why a proxy cannot be shown what the flags name.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file of `--token-file` cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The files in the directory of `--proxy-tls-dir` cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An https URL, and no CA certificates.
    #[error(
        "https needs the CA certificates of the proxy: name their directory with --proxy-tls-dir DIR"
    )]
    NoAuthorities,
    /// CA certificates for a URL without TLS.
    #[error(
        "--proxy-tls-dir is only for https:// URLs: without TLS, the proxy shows no certificate"
    )]
    NotSecured,
}

impl CredentialFlags {
    /// Reads the files, for an admin port with or without TLS as `secured` says.
    ///
    /// # Errors
    /// A file cannot be used, or the flags do not fit `secured`.
    pub fn read(&self, secured: bool) -> Result<Credentials, CredentialsError> {
        match (secured, &self.proxy_tls_dir) {
            (true, None) => Err(CredentialsError::NoAuthorities),
            (false, Some(_directory)) => Err(CredentialsError::NotSecured),
            _ => self.read_all(),
        }
    }

    /// Reads the files, for admin ports with TLS exactly if there are CA certificates.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn read_all(&self) -> Result<Credentials, CredentialsError> {
        let tokens = self.token_file.as_deref().map(AdminTokens::read).transpose()?;
        Ok(Credentials {
            token: tokens.map(|tokens| tokens.first().to_owned()),
            tls: self.proxy_tls_dir.as_deref().map(tls::to_admin_port).transpose()?,
            server_name: self.proxy_tls_server_name.clone(),
        })
    }
}
