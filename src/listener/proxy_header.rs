//! The PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`): a hop in front sends the address of
//! its client before the first byte of the client.
//!
//! A header can claim any address, so only listed networks may send one. From those a header is required, because
//! the client of a connection without one would be taken for the hop itself.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    client::Client,
    connection::{self, Context, quiet},
    error::{ConnectionError, ConnectionErrorReason},
    io::Socket,
    networks::Network,
    opening,
};

/// How long a hop may take for its header, which it sends first.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The most headers that are waited for at once. They arrive in the first packet, so this is enough for a burst of
/// connections.
const MAX_WAITING: usize = 1024;

/// The first bytes of a header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest line of version 1 in bytes, with its end.
const MAX_LINE: usize = 107;

/// The longest part of version 2 after the fixed one: addresses and other data of the hop. Hops send some hundred
/// bytes.
const MAX_REST: usize = 2048;

/// The hops that send the addresses of their clients. Clones share the limit on awaited headers.
#[derive(Debug, Clone)]
pub struct Hops {
    networks: Arc<[Network]>,
    waiting: Arc<Semaphore>,
}

impl Hops {
    /// The hops in `networks`. `None` if there are no networks.
    pub fn new(networks: &[Network]) -> Option<Self> {
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        (!networks.is_empty()).then(|| Self { networks: networks.into(), waiting })
    }

    /// Whether a connection from the address of `client` begins with a header.
    pub(super) fn have(&self, client: &Client) -> bool {
        let is_in = |address| self.networks.iter().any(|network| network.contains(address));
        client.address.is_some_and(is_in)
    }

    /// The right to wait for a header, once there is one.
    pub(super) async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.waiting).acquire_owned().await.ok()
    }
}

/// Reads the header, and returns the client whose address it tells. `None` if there is nothing to serve. The cause
/// has been logged and counted then.
pub(super) async fn resolve(
    mut socket: Socket,
    client: Client,
    context: &Context,
) -> Option<(Socket, Client)> {
    let read = tokio::select! {
        read = tokio::time::timeout(TIMEOUT, read(&mut socket)) => read,
        () = quiet(&context.drain) => return None,
    };
    let error = match read.unwrap_or(Err(HeaderError::Slow)) {
        Ok(Header::Client(address)) => {
            return Some((socket, Client { address: Some(address), ..client }));
        }
        Ok(Header::Hop) => return Some((socket, client)),
        Err(HeaderError::Closed) => return None,
        Err(error) => error,
    };
    let reason = error.reason();
    if let HeaderError::Missing(seen) = &error {
        context.proxy.refusals.stranger(reason, client.address, seen);
    }
    let failure = ConnectionError::new(reason, error.to_string());
    connection::report_error(client.connection, &context.proxy.metrics, &failure);
    None
}

/// The contents of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// The address of the client.
    Client(IpAddr),
    /// The hop speaks for itself, as in a health check, or does not know the address.
    Hop,
}

/// Why there is no header.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    /// The other side closed the connection without sending a byte.
    #[error("the connection closed")]
    Closed,
    /// The connection begins with something else.
    #[error("the connection begins with {0} instead of a PROXY header")]
    Missing(String),
    /// The header is malformed.
    #[error("the PROXY header is malformed")]
    Broken,
    /// The header did not arrive in time.
    #[error("no PROXY header arrived within {TIMEOUT:?}")]
    Slow,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl HeaderError {
    /// The kind of the error, for metrics and logs.
    fn reason(&self) -> ConnectionErrorReason {
        match self {
            Self::Missing(_) => ConnectionErrorReason::ProxyHeaderMissing,
            Self::Broken => ConnectionErrorReason::ProxyHeaderBroken,
            Self::Slow => ConnectionErrorReason::ProxyHeaderTimeout,
            Self::Closed | Self::Io(_) => ConnectionErrorReason::Io,
        }
    }
}

/// Reads a header and no further byte.
pub(super) async fn read(socket: &mut Socket) -> Result<Header, HeaderError> {
    let mut start = [0; SIGNATURE.len()];
    match socket.read_full(&mut start).await? {
        0 => return Err(HeaderError::Closed),
        len if len < start.len() => {
            return Err(HeaderError::Missing(opening::shown(&start[..len])));
        }
        _ => {}
    }
    if start == *SIGNATURE {
        return read_v2(socket).await;
    }
    if start.starts_with(b"PROXY ") {
        return read_v1(socket, &start).await;
    }
    Err(HeaderError::Missing(opening::shown(&start)))
}

/// A line does not tell its length, and the client's bytes follow it. So it is read byte by byte.
async fn read_v1(socket: &mut Socket, start: &[u8]) -> Result<Header, HeaderError> {
    let mut line = start.to_vec();
    while line.len() < MAX_LINE && !line.ends_with(b"\r\n") {
        let mut byte = [0];
        if socket.read_full(&mut byte).await? == 0 {
            break;
        }
        line.extend(byte);
    }
    parse_v1(&line).ok_or(HeaderError::Broken)
}

async fn read_v2(socket: &mut Socket) -> Result<Header, HeaderError> {
    let mut head = [0; 4];
    if socket.read_full(&mut head).await? < head.len() {
        return Err(HeaderError::Broken);
    }
    let len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    if len > MAX_REST {
        return Err(HeaderError::Broken);
    }
    let mut rest = vec![0; len];
    if socket.read_full(&mut rest).await? < len {
        return Err(HeaderError::Broken);
    }
    parse_v2(head[0], head[1], &rest).ok_or(HeaderError::Broken)
}

/// Parses `PROXY TCP4 SOURCE DESTINATION PORT PORT`, or `PROXY UNKNOWN` followed by anything.
fn parse_v1(line: &[u8]) -> Option<Header> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let address: IpAddr = match words.next()? {
        "UNKNOWN" => return Some(Header::Hop),
        "TCP4" => words.next()?.parse::<Ipv4Addr>().ok()?.into(),
        "TCP6" => words.next()?.parse::<Ipv6Addr>().ok()?.into(),
        _ => return None,
    };
    let [_destination, source_port, port] = [words.next()?, words.next()?, words.next()?];
    let _: (u16, u16) = (source_port.parse().ok()?, port.parse().ok()?);
    words.next().is_none().then_some(Header::Client(address.to_canonical()))
}

/// Parses the command with its version, the address family, and the addresses.
fn parse_v2(command: u8, family: u8, rest: &[u8]) -> Option<Header> {
    match (command, family >> 4) {
        (0x20, _) | (0x21, 0 | 3) => Some(Header::Hop),
        (0x21, 1) if rest.len() >= 12 => {
            let source: [u8; 4] = *rest.first_chunk()?;
            Some(Header::Client(IpAddr::from(source)))
        }
        (0x21, 2) if rest.len() >= 36 => {
            let source: [u8; 16] = *rest.first_chunk()?;
            Some(Header::Client(IpAddr::from(source).to_canonical()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{io::AsyncWriteExt as _, net::UnixStream};

    use super::*;

    /// The header that is read from `bytes`, and the bytes that follow it.
    fn read_from(bytes: &[u8]) -> (Result<Header, HeaderError>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
        runtime.expect("a runtime").block_on(async {
            let (socket, mut other) = UnixStream::pair().expect("a pair");
            let mut socket = Socket::Unix(socket);
            other.write_all(bytes).await.expect("sent");
            drop(other);
            let header = read(&mut socket).await;
            let mut left = vec![0; bytes.len() + 1];
            let len = socket.read_full(&mut left).await.expect("read");
            left.truncate(len);
            (header, left)
        })
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[command, family], &len, rest].concat()
    }

    #[test]
    fn a_header_tells_the_client_and_leaves_what_follows() {
        let v4 = [&[10, 1, 2, 3, 10, 0, 0, 1][..], &[0, 5, 0, 6], b"more"].concat();
        let v6 = [&[0xfd; 16][..], &[0; 16], &[0, 5, 0, 6]].concat();
        let client = |text: &str| Header::Client(text.parse().expect(text));
        for (bytes, header) in [
            (b"PROXY TCP4 10.1.2.3 10.0.0.1 5 6\r\n".to_vec(), client("10.1.2.3")),
            (b"PROXY TCP6 2001:db8::1 ::1 5 6\r\n".to_vec(), client("2001:db8::1")),
            (b"PROXY TCP6 ::ffff:10.1.2.3 ::1 5 6\r\n".to_vec(), client("10.1.2.3")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Hop),
            (b"PROXY UNKNOWN whatever it says\r\n".to_vec(), Header::Hop),
            (v2(0x21, 0x11, &v4), client("10.1.2.3")),
            (v2(0x21, 0x21, &v6), client("fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd")),
            (v2(0x20, 0, b""), Header::Hop),
            (v2(0x21, 0x31, &[7; 216]), Header::Hop),
        ] {
            let (found, left) = read_from(&[&bytes[..], b"PRI * HTTP/2.0"].concat());
            assert_eq!(found.expect("a header"), header, "{}", opening::shown(&bytes));
            assert_eq!(left, b"PRI * HTTP/2.0");
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            &b"PRI * HTTP/2.0\r\n\r\n"[..],
            b"PROXY TCP4 10.1.2.3 10.0.0.1 5\r\n",
            b"PROXY TCP4 ::1 ::1 5 6\r\n",
            b"PROXY TCP4 10.1.2.3 10.0.0.1 5 66000\r\n",
            b"PROXY UDP4 10.1.2.3 10.0.0.1 5 6\r\n",
            b"PROXY TCP4 10.1.2.3 10.0",
            &[b"PROXY UNKNOWN ".repeat(20), b"\r\n".to_vec()].concat(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 35]),
            &v2(0x21, 0x11, &[0; MAX_REST + 1]),
            &v2(0x21, 0x11, &[0; 12])[..20],
        ] {
            let (found, _left) = read_from(bytes);
            assert!(found.is_err(), "{}: {found:?}", opening::shown(bytes));
        }
        assert!(matches!(read_from(b"").0, Err(HeaderError::Closed)));
    }

    proptest! {
        /// Random bytes, alone and after the beginning of a header.
        #[test]
        fn no_bytes_make_it_panic(kind in 0..3_usize, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let start: &[u8] = [&b""[..], b"PROXY TCP4 ", SIGNATURE][kind];
            let _ = read_from(&[start, &bytes].concat());
        }
    }
}
