//! Drives one connection of a client, and spawns a task for each of its calls.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use h2::server;
use tokio_util::task::TaskTracker;

use super::{calls::Calls, stream::Stream, windows::Windows};
use crate::{
    http2_limits::{
        FRAME_LEN, HARD_HEADER_LIST_LEN, MAX_STREAMS, PENDING_RESETS, SEND_BUFFER_LEN,
        UNBOUND_CONNECTION_WINDOW, UNBOUND_STREAM_WINDOW,
    },
    io::{Batched, Payload},
    received::Received,
};

/// The server side of one connection. The future completes when the connection ends.
pub(super) struct Server {
    state: State,
    /// Counts the bytes that have arrived.
    io: Batched,
    windows: Windows,
    calls: Calls,
    /// Tracks the tasks of calls.
    tasks: TaskTracker,
    closing: bool,
}

enum State {
    Handshake(server::Handshake<Batched, Payload>),
    Open(server::Connection<Batched, Payload>),
}

impl Server {
    /// A server on `io`, from which nothing has been read.
    pub(super) fn new(io: Batched, calls: Calls, tasks: TaskTracker) -> Self {
        let handshake = server::Builder::new()
            .max_frame_size(FRAME_LEN)
            .initial_window_size(UNBOUND_STREAM_WINDOW)
            .initial_connection_window_size(UNBOUND_CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(HARD_HEADER_LIST_LEN)
            .max_send_buffer_size(SEND_BUFFER_LEN)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .handshake(io.clone());
        Self {
            state: State::Handshake(handshake),
            io,
            windows: Windows::small(),
            calls,
            tasks,
            closing: false,
        }
    }

    /// Sends GOAWAY: open calls go on, and the connection ends with the last one.
    pub(super) fn close(&mut self) {
        self.closing = true;
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }
}

impl Future for Server {
    type Output = Result<(), h2::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Handshake(handshake) => {
                    let mut connection = ready!(Pin::new(handshake).poll(cx))?;
                    if this.closing {
                        connection.graceful_shutdown();
                    }
                    this.state = State::Open(connection);
                }
                State::Open(connection) => {
                    // The state is in the connection. This future only polls it, and can be dropped.
                    let Poll::Ready(accepted) = pin!(connection.accept()).poll(cx) else {
                        let Calls { proxy, client, .. } = &this.calls;
                        let received = this.io.received();
                        if this.windows.open(connection, received, client, &proxy.windows) {
                            continue;
                        }
                        return Poll::Pending;
                    };
                    let Some(accepted) = accepted else { return Poll::Ready(Ok(())) };
                    let (request, reply) = accepted?;
                    let request = request.map(|stream| Received::new(stream, None));
                    this.tasks.spawn(Stream::new(&this.calls, request, reply));
                }
            }
        }
    }
}
