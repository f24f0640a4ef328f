//! One request to the admin port or the control listener of a proxy.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{
    Method, Request, StatusCode,
    header::{AUTHORIZATION, HOST},
};
use http_body_util::Empty;
use rustls::{
    ClientConfig,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::net::{TcpStream, UnixStream};

use super::Credentials;
use crate::{
    address::Address,
    http1::{self, ExchangeError},
    io::{Secured, Socket, configure_tcp},
};

/// How long to wait for a connection. A running proxy accepts at once; a proxy whose node is gone does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of one proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProxyAddress {
    /// One of the addresses of `host`.
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The host, whose name the certificate of the proxy has.
        host: String,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl ProxyAddress {
    /// All addresses of `address`.
    ///
    /// # Errors
    /// The host cannot be looked up.
    pub async fn of(address: &Address) -> io::Result<Vec<Self>> {
        match address {
            Address::Unix(path) => Ok(vec![Self::Unix(path.clone())]),
            Address::Tcp { host, port } => {
                let found = tokio::net::lookup_host((host.as_str(), *port)).await?;
                Ok(found.map(|address| Self::Tcp { address, host: host.clone() }).collect())
            }
        }
    }
}

/// What is asked of a proxy.
#[derive(Debug)]
pub struct Question<'a> {
    /// What is done.
    pub method: Method,
    /// The path, with the query.
    pub path: &'a str,
    /// How long to wait for the answer after the connection is open.
    pub limit: Duration,
    /// The longest answer that is read, in bytes.
    pub longest: usize,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The host has no address.
    #[error("the host has no address")]
    NoAddress,
    /// The proxy does not accept a connection.
    #[error("connect")]
    Connect(#[source] io::Error),
    /// The proxy does not accept a connection in time.
    #[error("not connected within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    /// The proxy does not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The name that the certificate should have is neither a DNS name nor an address.
    #[error("no certificate can be for `{name}`")]
    ServerName {
        /// The name.
        name: String,
        /// What is wrong with the name.
        source: InvalidDnsNameError,
    },
    /// The TLS handshake fails.
    #[error("TLS handshake")]
    Handshake(#[source] io::Error),
    /// The path or the token has characters that HTTP does not allow.
    #[error("the request is not valid in HTTP")]
    Request(#[from] http::Error),
    /// The connection breaks, or the answer is too long.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

impl RequestError {
    /// Whether the proxy cannot have seen the request, because there was no connection.
    pub fn is_unsent(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::ConnectTimeout)
    }
}

/// Sends a request without a body. Returns the status and the text of the answer.
///
/// # Errors
/// There is no connection, or no answer within the limits.
pub async fn send(
    address: &ProxyAddress,
    question: &Question<'_>,
    credentials: &Credentials,
) -> Result<(StatusCode, String), RequestError> {
    let &Question { ref method, path, limit, longest } = question;
    let mut request =
        Request::builder().method(method.clone()).uri(path).header(HOST, "buildkit-lb");
    if let Some(token) = &credentials.token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::new())?;
    let socket = connected(address, credentials).await?;
    let exchanged = tokio::time::timeout(limit, http1::exchange(socket, request, longest)).await;
    let (status, text) = exchanged.map_err(|_elapsed| RequestError::Timeout)??;
    Ok((status, text.trim().to_owned()))
}

async fn connected(
    address: &ProxyAddress,
    credentials: &Credentials,
) -> Result<Socket, RequestError> {
    match address {
        ProxyAddress::Tcp { address, host } => {
            let stream = in_time(TcpStream::connect(address)).await?;
            // If the proxy is gone already, the exchange fails at once.
            let _ = configure_tcp(&stream);
            let socket = Socket::Tcp(stream);
            let Some(tls) = &credentials.tls else { return Ok(socket) };
            secured(socket, tls, credentials.server_name.as_deref().unwrap_or(host)).await
        }
        ProxyAddress::Unix(path) => Ok(Socket::Unix(in_time(UnixStream::connect(path)).await?)),
    }
}

async fn in_time<S>(connect: impl Future<Output = io::Result<S>>) -> Result<S, RequestError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(stream) => stream.map_err(RequestError::Connect),
        Err(_elapsed) => Err(RequestError::ConnectTimeout),
    }
}

/// Does the TLS handshake with a proxy whose certificate must have `name`.
async fn secured(
    socket: Socket,
    tls: &Arc<ClientConfig>,
    name: &str,
) -> Result<Socket, RequestError> {
    // A host name may end with the dot of the root, but names in certificates do not.
    let server_name = ServerName::try_from(name.trim_end_matches('.').to_owned())
        .map_err(|source| RequestError::ServerName { name: name.to_owned(), source })?;
    let handshake = Secured::connect(socket, Arc::clone(tls), server_name);
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(Ok(secured)) => Ok(Socket::Tls(Box::new(secured))),
        Ok(Err(error)) => Err(RequestError::Handshake(error)),
        Err(_elapsed) => Err(RequestError::ConnectTimeout),
    }
}
