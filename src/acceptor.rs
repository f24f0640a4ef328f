//! A socket that is bound and accepts connections. All ports of the proxy accept with it.

use std::{
    fs::Permissions,
    io, mem,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream};
use tracing::{debug, info, warn};

use crate::{
    address::{Address, HostPort},
    descriptors::is_shortage,
    io::{Socket, configure_tcp},
};

/// Connections that may wait to be accepted; the system's own limit is below (`net.core.somaxconn`).
///
/// What the standard library asks for, 128, is less than the jobs that one pipeline can start. A client
/// that finds the queue full is not refused: its SYN is lost, and it tries again after a second.
const BACKLOG: u32 = 65_535;

/// How long the proxy waits after a failed accept, so that a process out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens.
#[derive(Debug)]
pub struct Acceptor {
    socket: Listening,
    address: Address,
    /// Whether the last attempt to accept failed for want of descriptors or memory.
    failing: bool,
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A new connection and, if it is TCP, the address of the other end.
pub type Accepted = (Socket, Option<SocketAddr>);

impl Acceptor {
    /// Binds `address`. Everybody who reaches it may connect. A Unix socket left behind by a process that is gone is
    /// replaced.
    ///
    /// # Errors
    /// The address is in use, unknown or not permitted.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        Self::bind_for(address, None).await
    }

    /// Like [`Self::bind`], but only the user of this process may connect to a Unix socket.
    ///
    /// # Errors
    /// The address is in use, unknown or not permitted.
    pub async fn bind_private(address: &Address) -> io::Result<Self> {
        Self::bind_for(address, Some(Permissions::from_mode(0o600))).await
    }

    async fn bind_for(address: &Address, permissions: Option<Permissions>) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => {
                let listener = listen_tcp(host, *port).await?;
                let port = listener.local_addr()?.port();
                let address = Address::Tcp { host: host.clone(), port };
                Ok(Self { socket: Listening::Tcp(listener), address, failing: false })
            }
            Address::Unix(path) => {
                remove_stale(path).await?;
                let socket = UnixSocket::new_stream()?;
                socket.bind(path)?;
                let file = SocketFile(path.clone());
                if let Some(permissions) = permissions {
                    // Nobody can connect before the socket listens, whatever the mode of its file is.
                    std::fs::set_permissions(path, permissions)?;
                }
                let socket = Listening::Unix(socket.listen(BACKLOG)?, file);
                Ok(Self { socket, address: address.clone(), failing: false })
            }
        }
    }

    /// Binds a port for operators, who need no long queue of connections. Returns the address to which it is bound, too.
    ///
    /// # Errors
    /// The address is in use, unknown or not permitted.
    pub async fn bind_port(HostPort { host, port }: &HostPort) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind((host.as_str(), *port)).await?;
        configure_tcp(&listener)?;
        let bound = listener.local_addr()?;
        let address = Address::Tcp { host: bound.ip().to_string(), port: bound.port() };
        Ok((Self { socket: Listening::Tcp(listener), address, failing: false }, bound))
    }

    /// The address, with the real port in place of port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for the next connection, and for the end of any want of descriptors or memory, which is logged.
    ///
    /// At such a want `make_room` may give some up: if it returns `true`, the next attempt follows at once. The future may
    /// be dropped without losing a connection.
    pub async fn accept(&mut self, mut make_room: impl FnMut() -> bool) -> Accepted {
        loop {
            match self.try_accept().await {
                Ok(accepted) => {
                    if mem::take(&mut self.failing) {
                        info!(address = %self.address, "accept recovered");
                    }
                    return accepted;
                }
                // The client has closed the connection already.
                Err(error) if !is_shortage(&error) => debug!(%error, "accept failed"),
                Err(_shortage) if make_room() => {}
                Err(error) => {
                    if mem::replace(&mut self.failing, true) {
                        debug!(address = %self.address, %error, "accept still fails");
                    } else {
                        warn!(address = %self.address, %error, "accept failed");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<Accepted> {
        Ok(match &self.socket {
            Listening::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Socket::Tcp(stream), Some(peer))
            }
            Listening::Unix(listener, _file) => (Socket::Unix(listener.accept().await?.0), None),
        })
    }
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
    configure_tcp(&socket)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The file of a bound Unix socket, which is removed with its listener.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed the file before.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the file of a Unix socket on which nobody listens.
async fn remove_stale(path: &Path) -> io::Result<()> {
    match tokio::fs::symlink_metadata(path).await {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            tokio::fs::remove_file(path).await
        }
        // If there is something else, the error of bind says so.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::try_join_all;
    use socket2::SockRef;
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

    #[tokio::test]
    async fn connections_have_their_options_from_the_socket_that_listens() {
        let port = HostPort { host: "127.0.0.1".to_owned(), port: 0 };
        let clients = Address::Tcp { host: port.host.clone(), port: 0 };
        let (for_operators, _bound) = Acceptor::bind_port(&port).await.expect("it listens");
        for mut acceptor in [Acceptor::bind(&clients).await.expect("it listens"), for_operators] {
            let Address::Tcp { host, port } = acceptor.address().clone() else { panic!("TCP") };
            let _client = TcpStream::connect((host.as_str(), port)).await.expect("it accepts");
            let (Socket::Tcp(accepted), _peer) = acceptor.accept(|| false).await else {
                panic!("TCP")
            };
            let socket = SockRef::from(&accepted);
            assert!(socket.tcp_nodelay().expect("asked") && socket.keepalive().expect("asked"));
            let idle = socket.tcp_keepalive_time().expect("asked");
            assert_eq!(idle, Duration::from_secs(30));
            let unacknowledged = socket.tcp_user_timeout().expect("asked");
            assert_eq!(unacknowledged, Some(Duration::from_secs(60)));
        }
    }

    #[tokio::test]
    async fn a_private_socket_is_for_this_user_alone_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let address = Address::Unix(path.clone());
        let acceptor = Acceptor::bind_private(&address).await.expect("it listens");
        let mode = std::fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(Acceptor::bind(&address).await.is_err(), "it is in use");
        drop(acceptor);
        assert!(!path.exists());
    }
}
