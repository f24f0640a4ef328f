//! The options that every TCP connection of the proxy has.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// An idle peer that is gone is found after this and three probes ten seconds apart.
///
/// TCP's own keepalive, not HTTP/2's: a daemon closes a connection that is pinged more often than
/// every five minutes (grpc-go `too_many_pings`). It also keeps a cloud load balancer's idle timer
/// (4 minutes on Azure) from closing a silent build.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long sent data may stay unacknowledged. A node that vanished in the middle of a transfer is found by this.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Turns Nagle's algorithm off, and has the system find dead peers. The connections of a `socket` that listens have the
/// options of that socket.
///
/// # Errors
/// The system refuses an option.
pub fn configure_tcp(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}
