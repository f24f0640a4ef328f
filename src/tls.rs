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
    client::{Client, Expected, ServerNames, Sessions},
    failure::{failure, too_slow},
    files::{Files, TlsError},
    server::{ClientAuth, HANDSHAKE_TIMEOUT, Server},
};

/// What both sides say they speak, to whoever asks.
const ALPN: &[u8] = b"h2";

/// The only cryptography of the process; Kubernetes' client has the same.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
