//! One request to a proxy's admin port or control listener.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{
    Request, StatusCode,
    header::{AUTHORIZATION, HOST},
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::upstream::configure_tcp;

/// A proxy that is there accepts at once; one whose node is gone does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest answer that is read: some lines of text.
const MAX_ANSWER: usize = 64 * 1024;

/// Where one proxy is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum ProxyAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("not connected within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("no answer in time")]
    Timeout,
    #[error("the token is no header value")]
    Token(#[from] http::Error),
    #[error("exchange")]
    Exchange(#[from] hyper::Error),
    #[error("read the answer")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// POSTs to `path`, and waits for the answer at most `limit`.
pub(super) async fn post(
    address: &ProxyAddress,
    path: &str,
    token: Option<&str>,
    limit: Duration,
) -> Result<(StatusCode, String), RequestError> {
    let mut request = Request::post(path).header(HOST, "buildkit-lb");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::new())?;
    let exchanged = match address {
        ProxyAddress::Tcp(address) => {
            let stream = connected(TcpStream::connect(address)).await?;
            // A proxy that is gone already; the exchange fails at once.
            let _ = configure_tcp(&stream);
            tokio::time::timeout(limit, exchange(stream, request)).await
        }
        ProxyAddress::Unix(path) => {
            let stream = connected(UnixStream::connect(path)).await?;
            tokio::time::timeout(limit, exchange(stream, request)).await
        }
    };
    exchanged.unwrap_or(Err(RequestError::Timeout))
}

async fn connected<S>(connect: impl Future<Output = io::Result<S>>) -> Result<S, RequestError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
        Ok(stream) => stream.map_err(RequestError::Connect),
        Err(_elapsed) => Err(RequestError::ConnectTimeout),
    }
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, String), RequestError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(RequestError::Answer)?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).trim().to_owned()))
    };
    match select(Box::pin(answer), Box::pin(connection)).await {
        Either::Left((answer, _connection)) => answer,
        // The connection ends when the answer has come, or without one.
        Either::Right((_ended, answer)) => answer.await,
    }
}
