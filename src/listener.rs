//! Accepts client connections, within a limit, until told to stop.

mod handshake;
mod proxy_header;

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket};
use tracing::{debug, info, warn};

use self::handshake::Accepted;
pub use self::{handshake::Handshakes, proxy_header::Hops};
use crate::{
    address::Address,
    client::Client,
    connection::{self, Context},
    connection_limit::{ConnectionLimit, ConnectionPermit, TooManyConnections},
    descriptors::{ACCEPT_PAUSE, is_shortage},
    io::Socket,
    upstream::configure_tcp,
};

/// Connections that may wait to be accepted; the system's own limit is below (`net.core.somaxconn`).
///
/// What the standard library asks for, 128, is less than the jobs that one pipeline can start. A client
/// that finds the queue full is not refused: its SYN is lost, and it tries again after a second.
const BACKLOG: u32 = 65_535;

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    socket: Listening,
    address: Address,
}

/// Admits clients: the limit on connections, and the TLS handshake.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The limit on connections.
    pub limit: ConnectionLimit,
    /// The handshakes of clients, if they speak TLS.
    pub handshakes: Option<Handshakes>,
    /// The hops in front that tell their clients' addresses, if there are any.
    pub hops: Option<Hops>,
}

#[derive(Debug)]
enum Listening {
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
                let listener = listen_tcp(host, *port).await?;
                let port = listener.local_addr()?.port();
                let address = Address::Tcp { host: host.clone(), port };
                Ok(Self { socket: Listening::Tcp(listener), address })
            }
            Address::Unix(path) => {
                remove_stale(path).await?;
                let socket = UnixSocket::new_stream()?;
                socket.bind(path)?;
                let listener = socket.listen(BACKLOG)?;
                let file = SocketFile::new(path);
                Ok(Self { socket: Listening::Unix(listener, file), address: address.clone() })
            }
        }
    }

    /// What it is bound to; a port 0 has become the real one.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts until the drain begins. A client that gets no permit waits a little, with all behind it,
    /// and is told then.
    pub async fn run(self, context: Context, admission: Admission) {
        let pool = context.proxy.metrics.pool();
        let tls = admission.handshakes.is_some();
        info!(address = %self.address, port_name = "grpc", pool, tls, "listening");
        tokio::select! {
            () = context.drain.cancelled() => {}
            () = self.accept_all(&context, &admission) => {}
        }
    }

    async fn accept_all(&self, context: &Context, admission: &Admission) {
        let mut failing = false;
        loop {
            match self.accept().await {
                Ok(socket) => {
                    if failing {
                        info!(address = %self.address, "accept recovered");
                        failing = false;
                    }
                    receive(socket, context, admission).await;
                }
                // The client's own doing: it has gone already.
                Err(error) if !is_shortage(&error) => debug!(%error, "accept failed"),
                Err(error) => {
                    if !failing {
                        warn!(address = %self.address, %error, "accept failed");
                        failing = true;
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<Socket> {
        Ok(match &self.socket {
            Listening::Tcp(listener) => {
                let (stream, _peer) = listener.accept().await?;
                // A client that is gone already; its connection fails at once.
                let _ = configure_tcp(&stream);
                Socket::Tcp(stream)
            }
            Listening::Unix(listener, _file) => Socket::Unix(listener.accept().await?.0),
        })
    }
}

/// Serves a connection, after what a hop in front has to tell of it.
async fn receive(socket: Socket, context: &Context, admission: &Admission) {
    let client = connection::client(&socket);
    let Some(hops) = admission.hops.as_ref().filter(|hops| hops.have(&client)) else {
        return serve(socket, client, context, admission).await;
    };
    // In a task of its own: the next connection does not wait for this one's header.
    let Some(waiting) = hops.wait().await else { return };
    let (task, admission) = (context.clone(), admission.clone());
    context.tasks.spawn(async move {
        if let Some((socket, client)) = proxy_header::resolve(socket, client, &task).await {
            serve(socket, client, &task, &admission).await;
        }
        drop(waiting);
    });
}

/// Serves the client if it gets a permit, and refuses it otherwise.
async fn serve(socket: Socket, client: Client, context: &Context, admission: &Admission) {
    let Admission { limit, handshakes, hops: _ } = admission;
    match limit.wait(&client).await {
        Ok(permit) => {
            if permit.evicted_another() {
                context.proxy.refusals.full(limit.limit(), client.address, None);
            }
            match handshakes {
                None => {
                    context.tasks.spawn(connection::serve(socket, client, permit, context.clone()))
                }
                Some(handshakes) => context.tasks.spawn(serve_secured(
                    handshakes.clone(),
                    socket,
                    client,
                    permit,
                    context.clone(),
                )),
            };
        }
        Err(cause) => {
            context.proxy.refusals.full(limit.limit(), client.address, Some(cause));
            if let Some(answering) = limit.answer_permit() {
                let refusing = refuse(handshakes.clone(), socket, client, cause, context.clone());
                context.tasks.spawn(refusing.map(move |()| drop(answering)));
            }
        }
    }
}

async fn serve_secured(
    handshakes: Handshakes,
    socket: Socket,
    mut client: Client,
    permit: ConnectionPermit,
    context: Context,
) {
    // Boxed, so that an open connection does not keep the room for a handshake.
    let accepted = Box::pin(handshakes.accept(socket, &client, &context)).await;
    if let Some(Accepted { socket, identity }) = accepted {
        let name = identity.as_deref().map(tracing::field::display);
        debug!(connection = client.connection, identity = name, "TLS handshake done");
        client.identity = identity;
        connection::serve(socket, client, permit, context).await;
    }
}

async fn refuse(
    handshakes: Option<Handshakes>,
    socket: Socket,
    client: Client,
    cause: TooManyConnections,
    context: Context,
) {
    let socket = match handshakes {
        None => socket,
        Some(handshakes) => {
            let accepted = Box::pin(handshakes.accept(socket, &client, &context)).await;
            let Some(accepted) = accepted else { return };
            accepted.socket
        }
    };
    connection::refuse(socket, client, cause, context).await;
}

/// Listens on the first address of `host` that can be bound.
async fn listen_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in tokio::net::lookup_host((host, port)).await? {
        match listen_at(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Removes the file of a Unix socket when its listener goes.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl SocketFile {
    /// That of a socket which is bound to `path`.
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Someone may have removed it before us.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes a socket file that nobody listens on any more.
pub(crate) async fn remove_stale(path: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::try_join_all;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_burst_of_clients_finds_room_before_any_is_accepted() {
        let listener = listen_tcp("127.0.0.1", 0).await.expect("it listens");
        let address = listener.local_addr().expect("it is bound");
        let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
        let clients = most.trim().parse().map_or(400, |most: usize| most.min(400));
        let clients = try_join_all((0..clients).map(|_| TcpStream::connect(address)));
        let clients = tokio::time::timeout(Duration::from_secs(20), clients).await;
        clients.expect("no SYN is dropped").expect("all connect");
    }
}
