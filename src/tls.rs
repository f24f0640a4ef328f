//! TLS on both sides: which certificates are in force, how they are renewed, and what became of a handshake.
//!
//! [`Server`] is what clients meet, [`Client`] is what daemons meet. Both read their files again while the proxy
//! runs: what is new counts for new connections, and one that is open keeps what it began with.

mod client;
mod failure;
mod files;
mod rotation;
mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use self::{
    client::{Client, Expected, ServerNames, Sessions, to_admin_port},
    failure::{failure, too_slow},
    files::{Files, TlsError},
    server::{ClientAuth, HANDSHAKE_TIMEOUT, Server},
};

/// What is spoken over TLS. Each side says so, to whoever asks.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    /// gRPC.
    Http2,
    /// The admin port.
    Http1,
}

impl Protocol {
    /// Its name in the TLS handshake (RFC 7301).
    fn alpn(self) -> Vec<Vec<u8>> {
        let name: &[u8] = match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
        };
        vec![name.to_vec()]
    }
}

/// The only cryptography of the process; Kubernetes' client has the same.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
