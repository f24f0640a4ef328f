//! The receive windows of a client connection, which are small until something on the connection is bound.

use h2::server::Connection;

use crate::{
    client::Client,
    http2_limits::{CONNECTION_WINDOW, STREAM_WINDOW, UNBOUND_STREAM_WINDOW},
    io::{Batched, Payload},
    shares::{Share, Shares},
};

/// The number of bytes after which large windows are useful: half of a small one, which is when the client is sent
/// a window update. Most builds send less, and need no frames that open the windows.
const OPENED_AFTER: usize = UNBOUND_STREAM_WINDOW as usize / 2;

/// The receive windows of one connection.
#[derive(Debug)]
pub(super) struct Windows {
    /// The memory of large windows, held until the connection ends.
    share: Option<Share>,
    /// The number of received bytes at which the windows are looked at next.
    due: usize,
}

impl Windows {
    /// The small windows of a new connection.
    pub(super) fn small() -> Self {
        Self { share: None, due: OPENED_AFTER }
    }

    /// Makes the windows of the `connection` of `client` large, if `received` bytes are enough and `all`, the
    /// memory for large windows of all clients, has room. Returns whether there is something to send.
    pub(super) fn open(
        &mut self,
        connection: &mut Connection<Batched, Payload>,
        received: usize,
        client: &Client,
        all: &Shares,
    ) -> bool {
        // Nothing is bound without a Solve or a Session.
        if received < self.due || client.active.is_idle() {
            return false;
        }
        if self.share.is_none() {
            self.share = all.take_spare(client, CONNECTION_WINDOW.into()).ok();
        }
        if self.share.is_none() {
            self.due = received.saturating_add(STREAM_WINDOW as usize);
            return false;
        }
        // The library refuses this until the client has confirmed the previous settings.
        if connection.set_initial_window_size(STREAM_WINDOW).is_err() {
            return false;
        }
        connection.set_target_window_size(CONNECTION_WINDOW);
        self.due = usize::MAX;
        true
    }
}
