//! TLS on both sides: the certificates in use, their renewal, and the causes of failed handshakes.
//!
//! [`Server`] is for connections of clients, and [`Client`] for connections to daemons. Both read their files again
//! while the proxy runs. New connections use the new certificates, and open ones keep theirs.

mod authority;
mod client;
mod dates;
mod failure;
mod files;
mod rotation;
mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use self::{
    authority::Authority,
    client::{Client, Expected, ServerNames, Sessions, to_admin_port},
    dates::{Dates, dates},
    failure::{failure, too_slow},
    files::{Files, TlsError},
    server::{ClientAuth, HANDSHAKE_TIMEOUT, Server},
};

/// The protocol over TLS, which the handshake announces.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    /// HTTP/2, for gRPC.
    Http2,
    /// HTTP/1, for the admin port.
    Http1,
}

impl Protocol {
    /// The names of the protocol in the TLS handshake (RFC 7301).
    fn alpn(self) -> Vec<Vec<u8>> {
        let name: &[u8] = match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
        };
        vec![name.to_vec()]
    }
}

/// The only cryptography library of the process. The Kubernetes client uses the same one.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
