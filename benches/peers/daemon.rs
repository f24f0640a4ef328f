//! A daemon that answers builds with almost no work, so that the way to it is what is measured.

use std::{
    collections::HashMap,
    future::poll_fn,
    io::Write as _,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::grpc::{self, BULK_MESSAGE_LEN, CONNECTION_WINDOW, STREAM_WINDOW};

/// Metadata of a Session that asks the daemon for this many bytes.
pub(crate) const DOWNLOAD: &str = "bench-download";

/// Metadata of a call that names the build of the call.
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// Serves until the process is ended. Its first output is its address.
pub(crate) async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    let builds = Builds::default();
    loop {
        let (stream, _) = listener.accept().await?;
        let builds = builds.clone();
        // The client reports a connection that breaks.
        tokio::spawn(async move { connection(stream, builds).await });
    }
}

async fn connection(stream: TcpStream, builds: Builds) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(1 << 20)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        let builds = builds.clone();
        tokio::spawn(async move { call(request, respond, builds).await });
    }
    Ok(())
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    builds: Builds,
) -> Result<()> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let method = path.rsplit('/').next().unwrap_or_default();
    if method == "Session" {
        return session(&parts.headers, body, respond).await;
    }
    // All other calls have one message. It is read to its end, because dropping it unread would reset the stream.
    let message = grpc::read_message(body).await?;
    match method {
        "Solve" if path.contains("Control") => {
            let id = build_id(&message)?;
            let build = builds.reach(&id, Phase::Solving);
            tokio::select! {
                () = build.reaches(Phase::Ended) => reply(&mut respond, &grpc::frame(b"")),
                _ = poll_fn(|cx| respond.poll_reset(cx)) => {
                    builds.end(&id);
                    Ok(())
                }
            }
        }
        "Status" => {
            let id = build_id(&message)?;
            let build = builds.reach(&id, Phase::Known);
            let mut send = respond.send_response(ok(), false)?;
            tokio::select! {
                () = build.reaches(Phase::Ended) => finish(&mut send),
                _ = poll_fn(|cx| send.poll_reset(cx)) => Ok(()),
            }
        }
        "Ping" => {
            let id = parts.headers.get(BUILD_ID).context("Ping without a build")?.clone();
            builds.reach(id.to_str()?, Phase::Known).reaches(Phase::Solving).await;
            reply(&mut respond, &grpc::frame(&[b'p'; 64]))
        }
        "Return" => {
            let id = parts.headers.get(BUILD_ID).context("Return without a build")?.clone();
            reply(&mut respond, &grpc::frame(b""))?;
            builds.end(id.to_str()?);
            Ok(())
        }
        "Check" => reply(&mut respond, &grpc::frame(&[0x08, 0x01])),
        // A worker record without details, or another message of a realistic size.
        _ => reply(&mut respond, &grpc::frame(&grpc::field(1, &grpc::field(1, &[b'w'; 64])))),
    }
}

async fn session(
    headers: &HeaderMap,
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<()> {
    let download = headers.get(DOWNLOAD).map(|len| len.to_str().map(str::parse));
    let mut send = respond.send_response(ok(), false)?;
    grpc::send(&mut send, grpc::bytes_message(&[0; 24]), false).await?;
    if let Some(len) = download {
        send_bulk(&mut send, len??).await?;
    }
    grpc::discard(body).await?;
    finish(&mut send)
}

/// Sends `len` bytes in the messages that the inner HTTP/2 connection of a session makes.
pub(crate) async fn send_bulk(send: &mut SendStream<Bytes>, len: u64) -> Result<()> {
    let message = grpc::bytes_message(&vec![0x5a; BULK_MESSAGE_LEN]);
    let mut sent = 0;
    while sent < len {
        grpc::send(send, message.clone(), false).await?;
        sent += BULK_MESSAGE_LEN as u64;
    }
    Ok(())
}

fn ok() -> Response<()> {
    let mut response = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}

fn reply(respond: &mut SendResponse<Bytes>, message: &Bytes) -> Result<()> {
    let mut send = respond.send_response(ok(), false)?;
    send.send_data(message.clone(), false)?;
    finish(&mut send)
}

fn finish(send: &mut SendStream<Bytes>) -> Result<()> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("grpc-message", HeaderValue::from_static(""));
    Ok(send.send_trailers(trailers)?)
}

/// Field 1 of a SolveRequest or StatusRequest.
fn build_id(message: &[u8]) -> Result<String> {
    match message {
        [0x0a, len, rest @ ..] if *len < 0x80 && rest.len() >= usize::from(*len) => {
            Ok(String::from_utf8(rest[..usize::from(*len)].to_vec())?)
        }
        _ => Err(anyhow!("a build's first field is not its id")),
    }
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Known,
    Solving,
    Ended,
}

/// The builds that have not ended yet.
#[derive(Debug, Default, Clone)]
struct Builds(Arc<Mutex<HashMap<String, watch::Sender<Phase>>>>);

impl Builds {
    /// Records that the build has reached `phase`, and returns a receiver of the phase.
    fn reach(&self, id: &str, phase: Phase) -> Build {
        let mut builds = self.0.lock().expect("no holder panics");
        let build = builds.entry(id.to_owned()).or_insert_with(|| watch::Sender::new(phase));
        build.send_if_modified(|current| {
            let later = phase > *current;
            *current = phase.max(*current);
            later
        });
        Build(build.subscribe())
    }

    /// Ends a build. Its client has seen the answers to Ping and Status, so all its calls have arrived.
    fn end(&self, id: &str) {
        if let Some(build) = self.0.lock().expect("no holder panics").remove(id) {
            build.send_replace(Phase::Ended);
        }
    }
}

struct Build(watch::Receiver<Phase>);

impl Build {
    async fn reaches(mut self, phase: Phase) {
        // An error means that the build was dropped, which also ends it.
        let _ = self.0.wait_for(|current| *current >= phase).await;
    }
}
