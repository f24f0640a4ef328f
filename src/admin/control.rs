//! The control listener: who reaches it may change things.
//!
//! A Unix socket that only the proxy's own user can open, or loopback where an operator says that everybody on the
//! machine may. Neither is there unless it is asked for: no path can be written to wherever the proxy runs, and
//! loopback is shared with build steps that have the host's network.

use std::io;

use super::server::{Port, Server};
use crate::{acceptor::Acceptor, address::Address};

/// A control listener that is bound.
#[derive(Debug)]
pub struct Control(Acceptor);

impl Control {
    /// Binds `address`, whose host is a literal one.
    ///
    /// # Errors
    /// The address is in use or not permitted.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        Acceptor::bind_private(address).await.map(Self)
    }

    /// The address, with the real port in place of port 0.
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    /// Has `server` serve the listener.
    pub(super) async fn run(self, server: Server) {
        server.run(self.0, Port::Control).await;
    }
}
