//! The control listener, whose clients may change things.
//!
//! It is a Unix socket that only the user of this process can open, or a loopback address if the operator trusts
//! everybody on the machine. It exists only if it is configured: the proxy may run without any path to write to,
//! and build steps with the host's network share loopback.

use std::io;

use super::server::{Port, Server};
use crate::{acceptor::Acceptor, address::Address};

/// A control listener that is bound.
#[derive(Debug)]
pub struct Control(Acceptor);

impl Control {
    /// Binds `address`. The host of a TCP address is a literal one.
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

    /// Has `server` serve this listener.
    pub(super) async fn run(self, server: Server) {
        server.run(self.0, Port::Control).await;
    }
}
