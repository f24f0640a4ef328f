//! TLS to daemons: the authorities that the proxy trusts, the names that it expects, and its own certificate.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use rustls::{
    ClientConfig,
    client::{ClientSessionMemoryCache, ClientSessionStore, Resumption},
    pki_types::ServerName,
    sign::SingleCertAndKey,
};
use tokio_util::sync::CancellationToken;

use super::{
    Protocol,
    files::{Contents, Files, TlsError},
    provider,
    rotation::{Followed, Made},
};
use crate::metrics::{Metrics, TlsSide};

/// The placeholder for the name of a backend in the setting of server names.
const NAME: &str = "{name}";

/// The number of sessions with one daemon that are kept for resumption. A daemon gives one with each connection,
/// and each is used once.
const KEPT_SESSIONS: usize = 8;

/// TLS to the daemons of one pool.
#[derive(Debug)]
pub struct Client {
    followed: Followed<ClientConfig>,
    names: ServerNames,
}

/// The name that the certificates of all daemons of a pool must have, if it is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames(Option<Arc<str>>);

/// The name that the certificate of one daemon must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The name that the configuration sets for this backend.
    Configured(Arc<str>),
    /// The name by which the backend was found.
    Discovered(Arc<str>),
}

/// The sessions with one daemon that can be resumed.
#[derive(Clone)]
pub struct Sessions(Arc<dyn ClientSessionStore>);

impl Client {
    /// Reads the files, and expects `names` in the certificates of daemons.
    ///
    /// # Errors
    /// The files cannot be used for TLS.
    pub fn load(files: Files, names: ServerNames) -> Result<Self, TlsError> {
        let own = files.clone();
        let followed =
            Followed::load(files, move |contents| make(contents, &own, Protocol::Http2))?;
        Ok(Self { followed, names })
    }

    /// The configuration for a new connection to the daemon with these `sessions`.
    pub fn config(&self, sessions: &Sessions) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.followed.current());
        config.resumption = Resumption::store(Arc::clone(&sessions.0));
        Arc::new(config)
    }

    /// The name that the certificate of the backend `name` must have.
    pub fn server_name(&self, name: &str, expected: &Expected) -> Arc<str> {
        match (expected, &self.names.0) {
            (Expected::Configured(own), _) | (Expected::Discovered(own), None) => Arc::clone(own),
            (Expected::Discovered(_), Some(pattern)) => pattern.replace(NAME, name).into(),
        }
    }

    /// Follows the files until `stop`, and counts their changes in `metrics`.
    pub async fn follow(self: Arc<Self>, metrics: Arc<Metrics>, stop: CancellationToken) {
        self.followed.follow(TlsSide::Backend, &metrics, stop).await;
    }
}

impl FromStr for ServerNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match ServerName::try_from(text.replace(NAME, "name")) {
            Ok(_name) => Ok(Self(Some(text.into()))),
            Err(_invalid) => Err(format!(
                "`{text}` is neither a DNS name nor an IP address; {NAME} in it stands for the backend's name"
            )),
        }
    }
}

impl ServerNames {
    /// The text of the setting. `None` if it is not configured.
    pub fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl Default for Sessions {
    fn default() -> Self {
        Self(Arc::new(ClientSessionMemoryCache::new(KEPT_SESSIONS)))
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The configuration for one connection to the admin port of a proxy, with the certificates in `directory`.
///
/// # Errors
/// The files cannot be used for TLS.
pub fn to_admin_port(directory: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let files = Files::in_directory(directory);
    make(&files.read()?, &files, Protocol::Http1).map(|made| Arc::new(made.config))
}

fn make(
    contents: &Contents,
    files: &Files,
    protocol: Protocol,
) -> Result<Made<ClientConfig>, TlsError> {
    let authorities = contents.authorities(files)?.ok_or(TlsError::NoAuthorities)?;
    let pair = contents.pair(files)?;
    let chain = pair.as_ref().map(|pair| pair.cert.clone()).unwrap_or_default();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable(error.to_string()))?
        .with_root_certificates(authorities);
    let mut config = match pair {
        Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocol.alpn();
    Ok(Made { config, chain })
}
