//! One request for a daemon's metrics. The debug address of buildkitd has no TLS.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use tokio::net::TcpStream;

use crate::{
    address::HostPort,
    http1::{self, ExchangeError},
};

/// The longest answer that is read. buildkitd v0.32 answers with 9 KiB.
const MAX_ANSWER: usize = 1 << 20;

/// Why the metrics of a daemon were not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("no answer in time")]
    Timeout,
    #[error("connect to {0}")]
    Connect(HostPort, #[source] io::Error),
    #[error("ask for /metrics")]
    Exchange(#[from] ExchangeError),
    #[error("the answer is {0}")]
    Status(StatusCode),
}

/// The metrics that are served at `address`, as text.
pub(super) async fn fetch(address: &HostPort) -> Result<String, FetchError> {
    let connect = |error| FetchError::Connect(address.clone(), error);
    let resolved: SocketAddr = address.resolve().await.map_err(connect)?;
    let stream = TcpStream::connect(resolved).await.map_err(connect)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = http::Uri::from_static("/metrics");
    if let Ok(host) = address.to_string().parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    match http1::exchange(stream, request, MAX_ANSWER).await? {
        (StatusCode::OK, text) => Ok(text),
        (status, _text) => Err(FetchError::Status(status)),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// The result for a daemon that answers with `head`, and then with `blocks` blocks of 64 KiB.
    async fn answered(head: &'static str, blocks: usize) -> Result<String, FetchError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let answering = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(head.as_bytes()).await;
            let mut sent = 0;
            while sent < blocks && stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {
                sent += 1;
            }
            sent
        });
        let answer = fetch(&HostPort { host: "127.0.0.1".to_owned(), port }).await;
        let sent = answering.await.expect("no panic");
        assert!(sent < 1000, "{sent} blocks were read");
        answer
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_limit() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n";
        assert_eq!(answered(ok, 1).await.expect("an answer").len(), 65_536);
        let endless = answered("HTTP/1.1 200 OK\r\n\r\n", 1000).await;
        assert!(
            matches!(endless, Err(FetchError::Exchange(ExchangeError::Answer(_)))),
            "{endless:?}"
        );
        let refused = answered("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 0).await;
        assert!(matches!(refused, Err(FetchError::Status(_))), "{refused:?}");
        let nonsense = answered("SSH-2.0-OpenSSH\r\n\r\n", 0).await;
        assert!(
            matches!(nonsense, Err(FetchError::Exchange(ExchangeError::Connection(_)))),
            "{nonsense:?}"
        );
    }
}
