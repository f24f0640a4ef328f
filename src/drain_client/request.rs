//! One request to the admin port or the control listener of a proxy.

use std::{fmt, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{
    Request, StatusCode,
    header::{AUTHORIZATION, HOST},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::net::{TcpStream, UnixStream};

use crate::io::{Secured, Socket, configure_tcp};

/// How long to wait for a connection. A running proxy accepts at once; a proxy whose node is gone does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read. Proxies send some lines of text.
const MAX_ANSWER: usize = 64 * 1024;

/// The address of one proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ProxyAddress {
    /// One of the addresses of `host`.
    Tcp {
        address: SocketAddr,
        host: String,
    },
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

/// What to show to a proxy.
pub(super) struct Credentials {
    /// The admin token.
    pub(super) token: Option<String>,
    /// The certificates for the TLS handshake, if admin ports use TLS.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The name in the certificate of the admin port. `None` if it is the host.
    pub(super) server_name: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("not connected within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("no answer in time")]
    Timeout,
    #[error("no certificate can be for `{name}`")]
    ServerName { name: String, source: InvalidDnsNameError },
    #[error("TLS handshake")]
    Handshake(#[source] io::Error),
    #[error("the token is no header value")]
    Token(#[from] http::Error),
    #[error("exchange")]
    Exchange(#[from] hyper::Error),
    #[error("read the answer")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends a POST request to `path`, and waits at most `limit` for the answer.
pub(super) async fn post(
    address: &ProxyAddress,
    path: &str,
    credentials: &Credentials,
    limit: Duration,
) -> Result<(StatusCode, String), RequestError> {
    let mut request = Request::post(path).header(HOST, "buildkit-lb");
    if let Some(token) = &credentials.token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::new())?;
    let socket = connected(address, credentials).await?;
    let exchanged = tokio::time::timeout(limit, exchange(socket, request)).await;
    exchanged.unwrap_or(Err(RequestError::Timeout))
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

async fn exchange(
    socket: Socket,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, String), RequestError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(RequestError::Answer)?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()))
    };
    match select(Box::pin(answer), Box::pin(connection)).await {
        Either::Left((answer, _connection)) => answer,
        // The connection ends when the answer has arrived, or without one.
        Either::Right((_ended, answer)) => answer.await,
    }
}
