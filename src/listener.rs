//! Accepts client connections, within a limit, until told to stop.

use std::{
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tracing::{info, warn};

use crate::{
    address::Address,
    connection::{self, Context},
    io::Socket,
    upstream::configure_tcp,
};

/// Wait after a failed accept, so that a process out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: Bound,
    address: Address,
}

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}")]
pub struct ListenError {
    address: Address,
    source: io::Error,
}

impl Listener {
    /// Binds `address`. A Unix socket left behind by a process that is gone is replaced.
    ///
    /// # Errors
    /// The address is in use, unknown or not permitted.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        Self::try_bind(address)
            .await
            .map_err(|source| ListenError { address: address.clone(), source })
    }

    async fn try_bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let listener = TcpListener::bind((host.as_str(), *port)).await?;
                let port = listener.local_addr()?.port();
                let address = Address::Tcp { host: host.clone(), port };
                Ok(Self { socket: Bound::Tcp(listener), address })
            }
            Address::Unix(path) => {
                remove_stale(path).await?;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                Ok(Self { socket: Bound::Unix(listener, file), address: address.clone() })
            }
        }
    }

    /// What it is bound to; a port 0 has become the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts until the drain begins. Above the limit clients wait in the kernel's queue.
    pub async fn run(self, context: Context, limit: Arc<Semaphore>) {
        let pool = context.proxy.metrics.pool();
        info!(address = %self.address, port_name = "grpc", pool, "listening");
        loop {
            let accepted = tokio::select! {
                () = context.drain.cancelled() => return,
                accepted = self.accept(&limit) => accepted,
            };
            match accepted {
                Ok((socket, permit)) => {
                    context.tasks.spawn(connection::serve(socket, permit, context.clone()));
                }
                Err(error) => {
                    warn!(address = %self.address, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(
        &self,
        limit: &Arc<Semaphore>,
    ) -> io::Result<(Socket, tokio::sync::OwnedSemaphorePermit)> {
        let permit = Arc::clone(limit).acquire_owned().await.map_err(io::Error::other)?;
        let socket = match &self.socket {
            Bound::Tcp(listener) => {
                let (stream, _peer) = listener.accept().await?;
                // A client that is gone already; its connection fails at once.
                let _ = configure_tcp(&stream);
                Socket::Tcp(stream)
            }
            Bound::Unix(listener, _file) => Socket::Unix(listener.accept().await?.0),
        };
        Ok((socket, permit))
    }
}

/// Removes the file of a Unix socket when its listener goes.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Someone may have removed it before us.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes a socket file that nobody listens on any more.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match tokio::fs::symlink_metadata(path).await {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            tokio::fs::remove_file(path).await
        }
        // Not a socket: binding says what is wrong.
        _ => Ok(()),
    }
}
