//! Why the proxy could not start.

use std::io;

use crate::{
    address::{Address, HostPort},
    listener::ListenError,
    pool::PoolError,
    tls::TlsError,
    token::TokenError,
    traces::TracesError,
};

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The proxy cannot listen on an address for clients.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A pool cannot start.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The proxy cannot listen on the address of the admin port.
    #[error("listen on admin port {address}")]
    Admin {
        /// The address.
        address: HostPort,
        /// Why.
        source: io::Error,
    },
    /// The name of the configured DNS server cannot be looked up.
    #[error("look up the DNS server {server}")]
    DnsServer {
        /// The server.
        server: HostPort,
        /// Why.
        source: io::Error,
    },
    /// The proxy cannot listen on the control address.
    #[error("listen on control address {address}")]
    Control {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The proxy cannot listen on the scaler's address.
    #[error("listen on scaler port {address}")]
    Scaler {
        /// The address.
        address: HostPort,
        /// Why.
        source: io::Error,
    },
    /// The scaler's certificates became invalid after the configuration was checked.
    #[error("read the scaler's certificates")]
    ScalerTls(#[source] TlsError),
    /// The admin port's certificates became invalid after the configuration was checked.
    #[error("read the admin port's certificates")]
    AdminTls(#[source] TlsError),
    /// Spans cannot be exported.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The token file became invalid after the configuration was checked.
    #[error("read the admin tokens")]
    AdminTokens(#[source] TokenError),
    /// The file of the clients' tokens has broken since the configuration was read.
    #[error("read the clients' tokens")]
    ClientTokens(#[source] TokenError),
}
