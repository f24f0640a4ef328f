//! Where something listens: `tcp://HOST:PORT`, `unix:///PATH` or a plain `HOST:PORT`.

use std::{fmt, io, net::SocketAddr, path::PathBuf, str::FromStr};

/// The longest path of a Unix socket: `sun_path` has 108 bytes, and the last one is zero.
const MAX_PATH_LEN: usize = 107;

/// The longest name of a host (RFC 1035 section 2.3.4).
const MAX_HOST_LEN: usize = 253;

/// A socket to listen on or to dial, as buildctl's `--addr` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Host (name, IPv4, or IPv6 without brackets) and port.
    Tcp {
        /// Name or literal address.
        host: String,
        /// Port; 0 lets the system choose when listening.
        port: u16,
    },
    /// Path of a Unix domain socket.
    Unix(PathBuf),
}

/// Why a text is not an [`Address`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The text is neither `tcp://`, `unix://` nor plain `HOST:PORT`.
    #[error("scheme `{0}` is not supported, use tcp:// or unix://")]
    Scheme(String),
    /// The host is empty.
    #[error("host is missing in `{0}`, expected HOST:PORT")]
    Host(String),
    /// The port is missing or not a number from 0 to 65535.
    #[error("port is missing or not a number from 0 to 65535 in `{0}`, expected HOST:PORT")]
    Port(String),
    /// `unix://` without a path.
    #[error("path is missing in `{0}`, expected unix:///PATH")]
    Path(String),
    /// The host is not a valid name or address.
    #[error(
        "host `{0}` is not a name of up to {MAX_HOST_LEN} letters, digits, `-`, `_` and `.`, or an address"
    )]
    HostName(String),
    /// The path is not valid for a Unix socket.
    #[error("path `{0}` is longer than {MAX_PATH_LEN} bytes, or has control characters in it")]
    LongPath(String),
}

/// Host and port, for addresses that must be TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Name, IPv4, or IPv6 without brackets.
    pub host: String,
    /// The port, from 0 to 65535. If it is 0, the system chooses one when listening.
    pub port: u16,
}

impl HostPort {
    /// Looks the host up and returns its first address.
    ///
    /// # Errors
    /// The host cannot be looked up.
    pub async fn resolve(&self) -> io::Result<SocketAddr> {
        let mut addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        addresses.next().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.parse()? {
            Address::Tcp { host, port } => Ok(Self { host, port }),
            Address::Unix(_) => Err(AddressError::Port(text.to_owned())),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl Address {
    /// The `:authority` of a request that has none.
    pub fn authority(&self) -> String {
        match self {
            Self::Tcp { .. } => self.to_string().trim_start_matches("tcp://").to_owned(),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = match text.split_once("://") {
            Some(("tcp", rest)) => rest,
            Some(("unix", "")) => return Err(AddressError::Path(text.to_owned())),
            Some(("unix", path)) => {
                let possible = path.len() <= MAX_PATH_LEN && !path.contains(char::is_control);
                let path = possible.then(|| Self::Unix(path.into()));
                return path.ok_or_else(|| AddressError::LongPath(text.to_owned()));
            }
            Some((scheme, _)) => return Err(AddressError::Scheme(scheme.to_owned())),
            None => text,
        };
        let (host, port) =
            rest.rsplit_once(':').ok_or_else(|| AddressError::Port(text.to_owned()))?;
        let port = port.parse().ok().ok_or_else(|| AddressError::Port(text.to_owned()))?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(AddressError::Host(text.to_owned()));
        }
        // A percent sign precedes the zone of a link-local address.
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:%".contains(&byte);
        if host.len() > MAX_HOST_LEN || !host.bytes().all(known) {
            return Err(AddressError::HostName(host.to_owned()));
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for (text, written) in [
            ("tcp://127.0.0.1:1234", "tcp://127.0.0.1:1234"),
            ("0.0.0.0:0", "tcp://0.0.0.0:0"),
            ("tcp://[::1]:9", "tcp://[::1]:9"),
            ("buildkitd-0.buildkitd.build.svc:1234", "tcp://buildkitd-0.buildkitd.build.svc:1234"),
            ("unix:///run/b.sock", "unix:///run/b.sock"),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).to_string(), written);
        }
        assert_eq!("tcp://[::1]:9".parse::<Address>().expect("valid").authority(), "[::1]:9");
    }

    #[test]
    fn what_is_wrong_with_an_address_is_named() {
        let long = format!("unix://{}", "/".repeat(MAX_PATH_LEN + 1));
        assert_eq!(long.parse::<Address>(), Err(AddressError::LongPath(long.clone())));
        assert!(long[..long.len() - 1].parse::<Address>().is_ok());
        for (text, error) in [
            ("http://a:1", AddressError::Scheme("http".into())),
            ("tcp://:1", AddressError::Host("tcp://:1".into())),
            ("tcp://a", AddressError::Port("tcp://a".into())),
            ("a:65536", AddressError::Port("a:65536".into())),
            ("unix://", AddressError::Path("unix://".into())),
            ("tcp://a b:1", AddressError::HostName("a b".into())),
            ("tcp://a\n:1", AddressError::HostName("a\n".into())),
            ("unix:///a\n", AddressError::LongPath("unix:///a\n".into())),
        ] {
            assert_eq!(text.parse::<Address>().expect_err(text), error);
        }
    }
}
