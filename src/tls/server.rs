//! TLS to clients: the proxy's certificate, and whether clients must show one.

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

/// How long a handshake may take: two round trips, and the time in which a busy client signs. grpc-go gives a whole
/// connection 20 s.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

label_set! {
    /// Whether clients show certificates.
    #[derive(Default, clap::ValueEnum)]
    pub enum ClientAuth {
        /// No certificate is asked for.
        Off = "off",
        /// A client need not show a certificate, but one that is shown must be valid.
        Optional = "optional",
        /// A client without a valid certificate gets no connection.
        #[default]
        Required = "required",
    }
}

/// The certificates for connections of clients.
#[derive(Debug)]
pub struct Server(Followed<ServerConfig>);

impl Server {
    /// Reads the files, for gRPC over TLS.
    ///
    /// # Errors
    /// The files cannot be used for TLS.
    pub fn load(files: Files, client_auth: ClientAuth) -> Result<Self, TlsError> {
        Self::speaking(Protocol::Http2, files, client_auth)
    }

    /// Reads the files of `directory`, for the scaler's port. KEDA must show a certificate if the directory has
    /// authorities.
    ///
    /// # Errors
    /// The files cannot be used for TLS.
    pub fn for_scaler(directory: &Path) -> Result<Self, TlsError> {
        Self::in_directory(directory, Protocol::Http2, ClientAuth::Required)
    }

    /// Reads the files of `directory`, for the admin port. If the directory has authorities, clients may show a
    /// certificate. They need not, because a kubelet that probes has none.
    ///
    /// # Errors
    /// The files cannot be used for TLS.
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

    /// The configuration for a new connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.current()
    }

    /// Follows the files until `stop`, and counts their changes for `side`.
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
    // buildctl requires that the server selects this protocol. buildx offers none, and is accepted without.
    config.alpn_protocols = protocol.alpn();
    // A resumed session would trust a certificate that was verified long ago. BuildKit's clients do not resume
    // sessions.
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
    // With hints of acceptable authorities, Go's clients send no certificate at all if theirs has another
    // authority. Without hints they send what they have, and the proxy can tell what is wrong with it.
    let builder = WebPkiClientVerifier::builder_with_provider(authorities, provider())
        .clear_root_hint_subjects();
    let builder = match client_auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Required | ClientAuth::Off => builder,
    };
    builder.build().map_err(|error| TlsError::Unusable(error.to_string()))
}
