//! Where a proxy is asked: `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`.

use std::{fmt, io, str::FromStr};

use super::ProxyAddress;
use crate::address::Address;

/// The admin port or the control listener of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminUrl {
    secured: bool,
    address: Address,
}

impl AdminUrl {
    /// Whether the proxy is asked over TLS.
    pub fn is_secured(&self) -> bool {
        self.secured
    }

    /// The addresses of the host.
    ///
    /// # Errors
    /// The host cannot be looked up.
    pub async fn addresses(&self) -> io::Result<Vec<ProxyAddress>> {
        ProxyAddress::of(&self.address).await
    }
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tcp = |rest: &str| format!("tcp://{}", rest.trim_end_matches('/'));
        let (secured, address) = match text.split_once("://") {
            Some(("http", rest)) => (false, tcp(rest)),
            Some(("https", rest)) => (true, tcp(rest)),
            Some(("unix", _path)) => (false, text.to_owned()),
            _ => {
                return Err(format!(
                    "`{text}` is not http://HOST:PORT, https://HOST:PORT or unix:///PATH"
                ));
            }
        };
        let address = address.parse::<Address>().map_err(|error| error.to_string())?;
        Ok(Self { secured, address })
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.to_string();
        match address.strip_prefix("tcp://") {
            Some(rest) if self.secured => write!(f, "https://{rest}"),
            Some(rest) => write!(f, "http://{rest}"),
            None => f.write_str(&address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written_alike() {
        for text in [
            "http://127.0.0.1:9090",
            "https://lb.example:9090",
            "http://[::1]:1",
            "unix:///run/c.sock",
        ] {
            assert_eq!(text.parse::<AdminUrl>().expect(text).to_string(), text);
        }
        let url = "https://lb:9090/".parse::<AdminUrl>().expect("a URL");
        assert_eq!((url.to_string().as_str(), url.is_secured()), ("https://lb:9090", true));
        for (wrong, told) in [
            ("", "is not http://"),
            ("127.0.0.1:9090", "is not http://"),
            ("tcp://127.0.0.1:9090", "is not http://"),
            ("http://lb", "port is missing"),
            ("http://lb:9090/status.json", "port is missing"),
            ("unix://", "path is missing"),
        ] {
            let error = wrong.parse::<AdminUrl>().expect_err(wrong);
            assert!(error.contains(told), "{wrong}: {error}");
        }
    }
}
