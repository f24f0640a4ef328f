//! The receive windows of a client's connection: small until something on it is bound.

use h2::server::Connection;

use crate::{
    client::Client,
    http2_limits::{CONNECTION_WINDOW, STREAM_WINDOW, UNBOUND_STREAM_WINDOW},
    io::{Batched, Payload},
    shares::{Share, Shares},
};

/// Large windows are of use once so much has come: half of a small one, which is when the client is given
/// more. Most builds send less, and are spared the frames that open the windows.
const OPENED_AFTER: usize = UNBOUND_STREAM_WINDOW as usize / 2;

/// What the client may send that nobody has read.
#[derive(Debug)]
pub(super) struct Windows {
    /// What large windows take, held until the connection ends.
    share: Option<Share>,
    /// When it is time to see whether they may be large: once so many bytes have come.
    due: usize,
}

impl Windows {
    /// Those of a connection that begins.
    pub(super) fn small() -> Self {
        Self { share: None, due: OPENED_AFTER }
    }

    /// Makes those of the `connection` of `client` large once it is time: `received` bytes have come, and
    /// `all` is what the large windows of all clients may take. Whether there is something to send then.
    pub(super) fn open(
        &mut self,
        connection: &mut Connection<Batched, Payload>,
        received: usize,
        client: &Client,
        all: &Shares,
    ) -> bool {
        // Without a Solve or Session nothing is bound.
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
        // Refused until the client has confirmed the settings that it was sent before.
        if connection.set_initial_window_size(STREAM_WINDOW).is_err() {
            return false;
        }
        connection.set_target_window_size(CONNECTION_WINDOW);
        self.due = usize::MAX;
        true
    }
}
