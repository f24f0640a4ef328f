//! The port at which the daemons of a pool serve metrics.

use std::{fmt, str::FromStr};

use super::kubernetes::is_name;
use crate::{
    address::{Address, HostPort},
    fleet::Endpoint,
};

/// The port at which daemons serve metrics: a number, or the name of a port of their Kubernetes Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsPort {
    /// This port of every daemon that has an IP address or a host name.
    Number(u16),
    /// The port that the slices of a Service give this name.
    Name(String),
}

impl MetricsPort {
    /// Notes the port of a daemon that says nothing of its metrics itself.
    pub(super) fn add(&self, endpoint: &mut Endpoint) {
        if let (Self::Number(port), Address::Tcp { host, .. }, None) =
            (self, &endpoint.address, &endpoint.location.metrics)
        {
            endpoint.location.metrics = Some(HostPort { host: host.clone(), port: *port });
        }
    }
}

impl FromStr for MetricsPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(port) if port > 0 => Ok(Self::Number(port)),
            Err(_) if is_name(text) && !text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(Self::Name(text.to_owned()))
            }
            _ => Err(format!("`{text}` is neither a port from 1 to 65535 nor the name of one")),
        }
    }
}

impl fmt::Display for MetricsPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => port.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_or_a_name_and_a_daemon_may_have_its_own() {
        for text in ["6060", "debug", "metrics-2"] {
            assert_eq!(text.parse::<MetricsPort>().expect(text).to_string(), text);
        }
        for text in ["", "0", "65536", "a b", "Debug"] {
            assert!(text.parse::<MetricsPort>().is_err(), "{text}");
        }
        let address = Address::Tcp { host: "10.0.0.1".to_owned(), port: 1234 };
        let mut endpoint = Endpoint::new("a", address);
        MetricsPort::Name("debug".to_owned()).add(&mut endpoint);
        assert_eq!(endpoint.location.metrics, None);
        MetricsPort::Number(6060).add(&mut endpoint);
        MetricsPort::Number(7070).add(&mut endpoint);
        let metrics = endpoint.location.metrics.map(|metrics| metrics.to_string());
        assert_eq!(metrics.as_deref(), Some("10.0.0.1:6060"));
    }
}
