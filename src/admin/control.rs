//! The control listener: who reaches it may change things.
//!
//! A Unix socket that only the proxy's own user can open, or loopback where an operator says that everybody on the
//! machine may. Neither is there unless it is asked for: no path can be written to wherever the proxy runs, and
//! loopback is shared with build steps that have the host's network.

use std::{fs::Permissions, io, net::SocketAddr, os::unix::fs::PermissionsExt as _};

use tokio::net::{TcpListener, UnixSocket};

use super::server::{Port, Server};
use crate::{
    address::Address,
    listener::{SocketFile, remove_stale},
};

/// Clients that may wait to be accepted: operators and their scripts.
const BACKLOG: u32 = 128;

/// A control listener that is bound.
#[derive(Debug)]
pub struct Control {
    port: Port,
    address: Address,
    /// Goes with the listener.
    _file: Option<SocketFile>,
}

impl Control {
    /// Binds `address`, whose host is a literal one.
    ///
    /// # Errors
    /// The address is in use or not permitted.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                remove_stale(path).await?;
                let socket = UnixSocket::new_stream()?;
                socket.bind(path)?;
                let file = SocketFile::new(path);
                // Before it listens: until then nobody can connect, whatever the file's mode is.
                std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
                let port = Port::File(socket.listen(BACKLOG)?);
                Ok(Self { port, address: address.clone(), _file: Some(file) })
            }
            Address::Tcp { host, port } => {
                let ip = host.parse().map_err(io::Error::other)?;
                let listener = TcpListener::bind(SocketAddr::new(ip, *port)).await?;
                let port = listener.local_addr()?.port();
                let address = Address::Tcp { host: host.clone(), port };
                Ok(Self { port: Port::Loopback(listener), address, _file: None })
            }
        }
    }

    /// What it is bound to; a port 0 has become the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Lets `server` serve it.
    pub(super) async fn run(self, server: Server) {
        server.run(self.port).await;
    }
}
