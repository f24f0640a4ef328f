//! What clients meet: the proxy's certificate, and whether they must show one.

use std::{path::Path, sync::Arc, time::Duration};

use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use tokio_util::sync::CancellationToken;

use super::{
    Protocol,
    files::{Contents, Files, TlsError},
    provider,
    rotation::{Followed, Made},
};
use crate::{
    label::label_set,
    metrics::{Metrics, TlsSide},
};

/// How long a handshake may take: two round trips, and the time in which a busy client signs. grpc-go itself gives
/// a connection 20 s.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

label_set! {
    /// Whether clients show certificates.
    #[derive(Default, clap::ValueEnum)]
    pub enum ClientAuth {
        /// None is asked for.
        Off = "off",
        /// One that is shown must be good.
        Optional = "optional",
        /// Whoever shows none gets no connection.
        #[default]
        Required = "required",
    }
}

/// TLS to clients.
#[derive(Debug)]
pub struct Server(Followed<ServerConfig>);

impl Server {
    /// Reads the files, for gRPC over TLS.
    ///
    /// # Errors
    /// They are of no use.
    pub fn load(files: Files, client_auth: ClientAuth) -> Result<Self, TlsError> {
        Self::speaking(Protocol::Http2, files, client_auth)
    }

    /// Reads the files of `directory`, for the scaler's port. KEDA must show a certificate if the directory has
    /// authorities for that.
    ///
    /// # Errors
    /// The files are of no use.
    pub fn for_scaler(directory: &Path) -> Result<Self, TlsError> {
        Self::in_directory(directory, Protocol::Http2, ClientAuth::Required)
    }

    /// Reads the files of `directory`, for the admin port. Clients may show a certificate if the directory has
    /// authorities for that. They need not, because a kubelet that probes has none.
    ///
    /// # Errors
    /// The files are of no use.
    pub fn for_admin_port(directory: &Path) -> Result<Self, TlsError> {
        Self::in_directory(directory, Protocol::Http1, ClientAuth::Optional)
    }

    fn in_directory(
        directory: &Path,
        protocol: Protocol,
        client_auth: ClientAuth,
    ) -> Result<Self, TlsError> {
        let files = Files::in_directory(directory);
        let client_auth = if files.ca.is_some() { client_auth } else { ClientAuth::Off };
        Self::speaking(protocol, files, client_auth)
    }

    fn speaking(
        protocol: Protocol,
        files: Files,
        client_auth: ClientAuth,
    ) -> Result<Self, TlsError> {
        let own = files.clone();
        Followed::load(files, move |contents| make(contents, &own, client_auth, protocol)).map(Self)
    }

    /// What counts for a new connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.current()
    }

    /// Follows the files until `stop`, and tells of them as of `side`.
    pub async fn follow(
        self: Arc<Self>,
        side: TlsSide,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        self.0.follow(side, &metrics, stop).await;
    }
}

fn make(
    contents: &Contents,
    files: &Files,
    client_auth: ClientAuth,
    protocol: Protocol,
) -> Result<Made<ServerConfig>, TlsError> {
    let pair = contents.pair(files)?.ok_or(TlsError::NoPair)?;
    let chain = pair.cert.clone();
    let verifier = verifier(contents, files, client_auth)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    // buildctl wants this chosen; buildx offers nothing, which is no reason to refuse it.
    config.alpn_protocols = protocol.alpn();
    // A resumed session would trust a certificate that was verified long ago. BuildKit's clients resume none.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Made { config, chain })
}

fn verifier(
    contents: &Contents,
    files: &Files,
    client_auth: ClientAuth,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    if client_auth == ClientAuth::Off {
        return Ok(WebPkiClientVerifier::no_client_auth());
    }
    let authorities = contents.authorities(files)?.ok_or(TlsError::NoAuthorities)?;
    // Go's clients send no certificate at all if its authority is not among the hints. Without hints they send
    // what they have, and what is wrong with it can be told.
    let builder = WebPkiClientVerifier::builder_with_provider(authorities, provider())
        .clear_root_hint_subjects();
    let builder = match client_auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Required | ClientAuth::Off => builder,
    };
    builder.build().map_err(|error| TlsError::Unusable(error.to_string()))
}
