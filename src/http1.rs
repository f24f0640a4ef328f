//! One request over HTTP/1, on a connection of its own.

use std::error::Error;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection breaks, or the other side does not speak HTTP/1.
    #[error("exchange")]
    Connection(#[from] hyper::Error),
    /// The answer breaks off, or is too long.
    #[error("read the answer")]
    Answer(#[source] Box<dyn Error + Send + Sync>),
}

/// Sends `request` over `socket`. Returns the status and the text of the answer, of which no more than `longest` bytes
/// are read.
///
/// # Errors
/// The connection breaks, or the answer is longer.
pub async fn exchange<S>(
    socket: S,
    request: Request<Empty<Bytes>>,
    longest: usize,
) -> Result<(StatusCode, String), ExchangeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), longest).collect().await;
        let body = body.map_err(ExchangeError::Answer)?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    match select(Box::pin(answer), Box::pin(connection)).await {
        Either::Left((answer, _connection)) => answer,
        // The connection ends when the answer has arrived, or without one.
        Either::Right((_ended, answer)) => answer.await,
    }
}
