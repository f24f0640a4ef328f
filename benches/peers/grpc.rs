//! The part of gRPC over HTTP/2 that a load generator needs.

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request};
use tokio::{
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
};

/// The receive windows of client and daemon. Those of grpc-go grow to about this size under load.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;

/// The inner connection of a session is cut into messages of about this size, which is the buffer of io.Copy.
pub(crate) const BULK_MESSAGE_LEN: usize = 32 * 1024;

/// `message` after the five bytes with which gRPC begins a message.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("messages are small"));
    framed.put_slice(message);
    framed.freeze()
}

/// A protobuf field that holds bytes.
pub(crate) fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut len = value.len();
    while len >= 0x80 {
        field.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    field.push(len as u8);
    field.extend_from_slice(value);
    field
}

/// A framed BytesMessage, which a Session carries.
pub(crate) fn bytes_message(data: &[u8]) -> Bytes {
    frame(&field(1, data))
}

/// Reads the only message of a body, without its frame.
pub(crate) async fn read_message(mut body: RecvStream) -> Result<Bytes> {
    let mut message = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    ensure!(message.len() >= 5, "no message");
    Ok(message.freeze().slice(5..))
}

/// Reads and drops a body. Returns its length and its trailers.
pub(crate) async fn discard(mut body: RecvStream) -> Result<(u64, Option<HeaderMap>)> {
    let mut len = 0;
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        len += chunk.len() as u64;
        body.flow_control().release_capacity(chunk.len())?;
    }
    Ok((len, body.trailers().await?))
}

/// Sends all of `data` as the other side makes room for it.
pub(crate) async fn send(send: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        while send.capacity() == 0 {
            poll_fn(|cx| send.poll_capacity(cx)).await.context("stream is closed")??;
        }
        let piece = data.split_to(data.len().min(send.capacity()));
        let last = data.is_empty();
        send.send_data(piece, end && last)?;
    }
    Ok(())
}

/// One HTTP/2 connection to a candidate.
#[derive(Debug)]
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    authority: String,
    connection: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        Self::over(TcpStream::connect(address).await?, address).await
    }

    /// Connects from another address than the system would choose.
    pub(crate) async fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        Self::over(socket.connect(address).await?, address).await
    }

    async fn over(stream: TcpStream, address: SocketAddr) -> Result<Self> {
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(1 << 20)
            .handshake(stream)
            .await?;
        let connection = tokio::spawn(async move {
            // The calls on the connection report if it breaks.
            let _ = connection.await;
        });
        Ok(Self { requests, authority: address.to_string(), connection })
    }

    /// Opens a call whose request body is sent later.
    pub(crate) async fn open(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
    ) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let mut requests = self.requests.clone().ready().await?;
        let mut request = Request::post(format!("http://{}{path}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "grpc-go/1.82.1");
        for (name, value) in metadata {
            request = request.header(*name, *value);
        }
        Ok(requests.send_request(request.body(())?, false)?)
    }

    /// Sends one message and waits for the end of the answer. Returns the length of the answer.
    pub(crate) async fn unary(
        &self,
        path: &str,
        metadata: &[(&str, &str)],
        message: Bytes,
    ) -> Result<u64> {
        let (response, mut body) = self.open(path, metadata).await?;
        send(&mut body, message, true).await?;
        finish(path, response).await
    }
}

/// Waits for the end of a call that must succeed. Returns the length of its messages.
async fn finish(path: &str, response: ResponseFuture) -> Result<u64> {
    let (parts, body) = response.await.with_context(|| format!("call {path}"))?.into_parts();
    finish_body(path, &parts.headers, body).await
}

async fn finish_body(path: &str, headers: &HeaderMap, body: RecvStream) -> Result<u64> {
    let (len, trailers) = discard(body).await.with_context(|| format!("read {path}"))?;
    let trailers = trailers.as_ref().unwrap_or(headers);
    match trailers.get("grpc-status") {
        Some(status) if status == "0" => Ok(len),
        _ => bail!("{path} failed: {trailers:?}"),
    }
}

/// Ids of a build and its session, with the same length as BuildKit's.
fn ids() -> (String, String) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    (format!("r{number:024}"), format!("s{number:024}"))
}

async fn open_session(
    client: &Client,
    id: &str,
    download: u64,
) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    let download = download.to_string();
    let mut metadata = vec![
        ("x-docker-expose-session-uuid", id),
        ("x-docker-expose-session-sharedkey", ""),
        ("x-docker-expose-session-grpc-method", "/grpc.health.v1.Health/Check"),
        ("x-docker-expose-session-grpc-method", "/moby.filesync.v1.FileSync/DiffCopy"),
        ("x-docker-expose-session-grpc-method", "/moby.filesync.v1.Auth/Credentials"),
    ];
    if download != "0" {
        metadata.push((crate::daemon::DOWNLOAD, &download));
    }
    let (response, mut session) =
        client.open("/moby.buildkit.v1.Control/Session", &metadata).await?;
    send(&mut session, bytes_message(&[0; 47]), false).await?;
    Ok((response, session))
}

/// A Session that no Solve belongs to.
#[derive(Debug)]
pub(crate) struct Session {
    response: Option<ResponseFuture>,
    answer: Option<RecvStream>,
    pub(crate) upload: SendStream<Bytes>,
}

impl Session {
    /// Opens the Session. The answer may take a while, because the proxy waits for a Solve.
    pub(crate) async fn open(client: &Client) -> Result<Self> {
        let (response, upload) = open_session(client, &ids().1, 0).await?;
        Ok(Self { response: Some(response), answer: None, upload })
    }

    /// Waits until the daemon has the Session.
    pub(crate) async fn accepted(&mut self) -> Result<()> {
        if let Some(response) = self.response.take() {
            self.answer = Some(response.await.context("call Session")?.into_body());
        }
        Ok(())
    }
}

/// A build whose Session, Solve and Status are open.
#[derive(Debug)]
pub(crate) struct Build {
    id: String,
    session: SendStream<Bytes>,
    downloaded: JoinHandle<Result<u64>>,
    solve: JoinHandle<Result<u64>>,
    status: JoinHandle<Result<u64>>,
}

impl Build {
    /// Opens a build like a client. The daemon sends `download` bytes into its session.
    pub(crate) async fn open(client: &Client, download: u64) -> Result<Self> {
        let (id, session_id) = ids();
        let (session_response, session) = open_session(client, &session_id, download).await?;
        let message = frame(&field(1, id.as_bytes()));
        let (status, mut body) = client.open("/moby.buildkit.v1.Control/Status", &[]).await?;
        send(&mut body, message, true).await?;
        let mut message = field(1, id.as_bytes());
        message.extend(field(5, session_id.as_bytes()));
        message.extend(field(7, &[field(1, b"target"), field(2, b"app")].concat()));
        let (solve, mut body) = client.open("/moby.buildkit.v1.Control/Solve", &[]).await?;
        send(&mut body, frame(&message), true).await?;

        let ping = "/moby.buildkit.v1.frontend.LLBBridge/Ping";
        client.unary(ping, &[("buildkit-controlapi-buildid", &id)], frame(b"")).await?;
        let (status_parts, status_body) = status.await.context("call Status")?.into_parts();
        let (session_parts, session_body) =
            session_response.await.context("call Session")?.into_parts();
        Ok(Self {
            id,
            session,
            downloaded: tokio::spawn(async move {
                finish_body("Session", &session_parts.headers, session_body).await
            }),
            solve: tokio::spawn(async move { finish("Solve", solve).await }),
            status: tokio::spawn(async move {
                finish_body("Status", &status_parts.headers, status_body).await
            }),
        })
    }

    /// The metadata of a client for the LLBBridge calls of this build.
    pub(crate) fn metadata(&self) -> [(&'static str, &str); 1] {
        [("buildkit-controlapi-buildid", &self.id)]
    }

    /// The request body of the session.
    pub(crate) fn session(&mut self) -> &mut SendStream<Bytes> {
        &mut self.session
    }

    /// Ends the build and waits until each of its calls has ended with OK. Returns the length of the download.
    pub(crate) async fn end(mut self, client: &Client) -> Result<u64> {
        // The result is empty: a Return with neither result nor error would end a real daemon.
        let path = "/moby.buildkit.v1.frontend.LLBBridge/Return";
        client.unary(path, &self.metadata(), frame(&field(1, b""))).await?;
        self.status.await??;
        self.solve.await??;
        self.session.send_data(Bytes::new(), true)?;
        self.downloaded.await?
    }
}
