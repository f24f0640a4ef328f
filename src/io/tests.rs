//! What batching saves, counted through the real HTTP/2 library.
//!
//! A new release of the library may write frame by frame, copy payloads into its own buffer before it
//! writes them, or take DATA in other pieces. Nothing would fail, and every byte would cost more.

#![allow(clippy::disallowed_methods, reason = "no drain waits for a test")]

use std::future::poll_fn;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Request, Response};
use tokio::net::UnixStream;

use super::*;
use crate::http2_limits::{CONNECTION_WINDOW, FRAME_LEN, SEND_BUFFER_LEN, STREAM_WINDOW};

/// The largest frame that daemons and clients take.
const THEIR_FRAME_LEN: usize = 16 << 10;

/// What a connection of a build carries in the tests.
const TRANSFER_LEN: usize = 8 << 20;

/// What the sockets and outboxes of a thread have done.
#[derive(Debug, Default, Clone, Copy)]
struct Work {
    /// System calls that sent something.
    writes: usize,
    /// Bytes copied into an outbox.
    copied: usize,
}

thread_local! {
    static WORK: Cell<Work> = const { Cell::new(Work { writes: 0, copied: 0 }) };
}

pub(super) fn count_write() {
    let work = WORK.get();
    WORK.set(Work { writes: work.writes + 1, ..work });
}

pub(super) fn count_copied(len: usize) {
    let work = WORK.get();
    WORK.set(Work { copied: work.copied + len, ..work });
}

/// A connection to the daemon at `socket`, set up as `upstream` does.
async fn to_daemon(socket: UnixStream) -> SendRequest<Payload> {
    let io = Batched::with_daemon(Socket::Unix(socket));
    let (sender, connection) = h2::client::Builder::new()
        .max_frame_size(FRAME_LEN)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER_LEN)
        .initial_max_send_streams(usize::MAX >> 1)
        .handshake(io.clone())
        .await
        .expect("a handshake");
    tokio::spawn(Flushing::new(connection, io));
    sender
}

/// Serves `socket`, and reads what comes on each stream: the pieces in which it does.
async fn read_all(socket: impl tokio::io::AsyncRead + AsyncWrite + Unpin) -> Vec<usize> {
    let mut connection = h2::server::Builder::new()
        .max_frame_size(FRAME_LEN)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake::<_, Bytes>(socket)
        .await
        .expect("a handshake");
    let mut reading = Vec::new();
    while let Some(stream) = connection.accept().await {
        let (request, mut respond) = stream.expect("a request");
        reading.push(tokio::spawn(async move {
            let pieces = pieces(request.into_body()).await;
            respond.send_response(Response::new(()), true).expect("an open stream");
            pieces
        }));
    }
    let mut all = Vec::new();
    for stream in reading {
        all.extend(stream.await.expect("no panic"));
    }
    all
}

async fn pieces(mut body: RecvStream) -> Vec<usize> {
    let mut pieces = Vec::new();
    while let Some(data) = body.data().await {
        let len = data.expect("no reset").len();
        body.flow_control().release_capacity(len).expect("it was received");
        pieces.push(len);
    }
    pieces
}

/// Sends `data` within the windows.
async fn send<B: bytes::Buf + From<Bytes>>(out: &mut SendStream<B>, mut data: Bytes) {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        let room = poll_fn(|cx| out.poll_capacity(cx)).await.expect("open").expect("open");
        let piece = data.split_to(room.min(data.len()));
        out.send_data(B::from(piece), false).expect("an open stream");
    }
}

fn request() -> Request<()> {
    Request::post("http://build.example/a.B/C").body(()).expect("a request")
}

#[tokio::test]
async fn bulk_data_is_written_in_large_pieces_and_not_copied() {
    let (mine, other) = UnixStream::pair().expect("a pair");
    let daemon = tokio::spawn(read_all(other));
    let sender = to_daemon(mine).await;
    let (response, mut out) =
        sender.ready().await.expect("open").send_request(request(), false).expect("open");
    let before = WORK.get();
    // In pieces as large as they are received.
    for _ in 0..TRANSFER_LEN / FRAME_LEN as usize {
        send(&mut out, Bytes::from(vec![7; FRAME_LEN as usize])).await;
    }
    out.send_data(Payload::default(), true).expect("open");
    response.await.expect("an answer");
    let work = WORK.get();
    let (writes, copied) = (work.writes - before.writes, work.copied - before.copied);
    drop(out);
    daemon.abort();
    let frames = TRANSFER_LEN / THEIR_FRAME_LEN;
    // h2 0.4.20 makes 40, the sockets being smaller than what is written in one turn.
    assert!(writes <= frames / 6, "{writes} writes for {frames} full frames");
    // And copies 33 kB: heads of frames, and the short ends where a window has cut one in two.
    assert!(copied <= TRANSFER_LEN / 100, "{copied} bytes copied of {TRANSFER_LEN}");
}

#[tokio::test]
async fn frames_of_many_calls_are_written_together() {
    const CALLS: usize = 100;
    let (mine, other) = UnixStream::pair().expect("a pair");
    let daemon = tokio::spawn(read_all(other));
    let mut sender = to_daemon(mine).await;
    let calls = async |sender: &mut SendRequest<Payload>| {
        let mut responses = Vec::new();
        for _ in 0..CALLS {
            let (response, mut out) = sender.send_request(request(), false).expect("open");
            out.send_data(Payload::from(Bytes::from_static(&[0; 5])), true).expect("open");
            responses.push(response);
        }
        for response in responses {
            response.await.expect("an answer");
        }
    };
    // The daemon's settings have come after the first ones.
    calls(&mut sender).await;
    let before = WORK.get().writes;
    calls(&mut sender).await;
    let writes = WORK.get().writes - before;
    daemon.abort();
    // h2 0.4.20 makes one.
    assert!(writes <= CALLS / 20, "{writes} writes for {CALLS} calls of two frames");
}

#[tokio::test]
async fn small_frames_reach_the_library_as_full_ones() {
    let (mine, other) = UnixStream::pair().expect("a pair");
    let io = Batched::with_client(Socket::Unix(mine));
    let reading = Box::pin(read_all(io.clone()));
    let proxy = tokio::spawn(Flushing::new(reading, io));
    let (sender, connection) = h2::client::handshake(other).await.expect("a handshake");
    let client = tokio::spawn(connection);
    let (response, mut out) =
        sender.ready().await.expect("open").send_request(request(), false).expect("open");
    // As grpc-go sends a message of 32 KiB.
    let messages = TRANSFER_LEN / (32 << 10);
    for _ in 0..messages {
        for len in [THEIR_FRAME_LEN, THEIR_FRAME_LEN, 13] {
            send::<Bytes>(&mut out, Bytes::from(vec![7; len])).await;
        }
    }
    out.send_data(Bytes::new(), true).expect("open");
    response.await.expect("an answer");
    drop(out);
    client.abort();
    let pieces = proxy.await.expect("no panic");
    assert_eq!(pieces.iter().sum::<usize>(), messages * ((32 << 10) + 13));
    // h2 0.4.20 gets 159; whole frames of the largest size would be 128.
    assert!(pieces.len() <= messages, "{} pieces of {} frames", pieces.len(), 3 * messages);
}
