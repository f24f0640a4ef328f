//! Daemons that the configuration names: `[NAME=]tcp://HOST:PORT` or `[NAME=]unix:///PATH`, with
//! `?capacity=NUMBER` if they are not alike, and `?server-name=NAME` if a certificate is for another name than
//! the host, and `?metrics=PORT` or `?metrics=HOST:PORT` if the daemon serves metrics; they are joined by `&`.

use std::{num::NonZeroU32, sync::Arc};

use rustls::pki_types::ServerName;

use crate::{
    address::{Address, HostPort},
    fleet::Endpoint,
    tls::Expected,
};

/// The largest capacity. Capacities only compare backends, and no backend is that much larger than another.
const MAX_CAPACITY: u32 = 10_000;

/// The longest name: as long as a pod's may be.
const MAX_NAME_LEN: usize = 253;

/// Parses one daemon. If the text has no name, the address is the name.
///
/// # Errors
/// A message that says which part of the text is invalid.
pub fn parse(text: &str) -> Result<Endpoint, String> {
    let (plain, options) = match text.rsplit_once('?') {
        Some((plain, options)) if options.contains('=') => (plain, Options::parse(options)?),
        _ => (text, Options::default()),
    };
    let (name, address) = match plain.split_once('=') {
        Some((name, address)) => (Some(name), address),
        None => (None, plain),
    };
    let address: Address = address.parse().map_err(|error| format!("{error}"))?;
    if let Address::Tcp { port: 0, .. } = address {
        return Err(format!("port 0 in `{text}` cannot be dialled"));
    }
    let url = address.to_string();
    let own_name = url.split_once("://").map_or(url.as_str(), |(_scheme, rest)| rest);
    let name = match name {
        Some("") => return Err(format!("name is empty in `{text}`")),
        Some(name) if name != own_name && !is_name(name) => {
            return Err(format!(
                "name `{name}` is not one of 1 to {MAX_NAME_LEN} letters, digits, `-`, `_`, `.` and `:`"
            ));
        }
        Some(name) => name.to_owned(),
        None => own_name.to_owned(),
    };
    let mut endpoint = Endpoint::new(name, address);
    endpoint.location.metrics =
        options.metrics.map(|metrics| metrics.at(&endpoint.address)).transpose()?;
    Ok(Endpoint {
        capacity: options.capacity.unwrap_or(endpoint.capacity),
        server_name: options.server_name.map_or(endpoint.server_name, Expected::Configured),
        ..endpoint
    })
}

/// The settings behind the address.
#[derive(Debug, Default)]
struct Options {
    capacity: Option<NonZeroU32>,
    server_name: Option<Arc<str>>,
    metrics: Option<Metrics>,
}

/// Where a daemon serves metrics.
#[derive(Debug)]
enum Metrics {
    /// At this port of the host of its address.
    Port(u16),
    At(HostPort),
}

impl Metrics {
    fn parse(text: &str) -> Result<Self, String> {
        let problem = || format!("`{text}` is neither a port from 1 to 65535 nor HOST:PORT");
        if let Ok(port) = text.parse() {
            return if port > 0 { Ok(Self::Port(port)) } else { Err(problem()) };
        }
        match text.parse::<HostPort>() {
            Ok(address) if address.port > 0 => Ok(Self::At(address)),
            _ => Err(problem()),
        }
    }

    fn at(self, address: &Address) -> Result<HostPort, String> {
        match (self, address) {
            (Self::At(address), _) => Ok(address),
            (Self::Port(port), Address::Tcp { host, .. }) => {
                Ok(HostPort { host: host.clone(), port })
            }
            (Self::Port(port), Address::Unix(_)) => {
                Err(format!("?metrics={port} needs a host, because {address} has none"))
            }
        }
    }
}

impl Options {
    fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for option in text.split('&') {
            match option.split_once('=') {
                Some(("capacity", capacity)) => options.capacity = Some(parse_capacity(capacity)?),
                Some(("server-name", name)) => options.server_name = Some(parse_name(name)?),
                Some(("metrics", metrics)) => options.metrics = Some(Metrics::parse(metrics)?),
                _ => {
                    return Err(format!(
                        "`?{option}` is none of ?capacity=N, ?server-name=NAME and ?metrics=PORT"
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// Whether logs, metrics and paths of the admin port can show `name`.
fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    name.len() <= MAX_NAME_LEN && name.bytes().all(known)
}

/// The text of an endpoint, which [`parse`] accepts.
pub fn text(endpoint: &Endpoint) -> String {
    let capacity = Some(endpoint.capacity.get()).filter(|capacity| *capacity != 1);
    let capacity = capacity.map(|capacity| format!("capacity={capacity}"));
    let server_name = match &endpoint.server_name {
        Expected::Configured(name) => Some(format!("server-name={name}")),
        Expected::Discovered(_) => None,
    };
    let metrics = endpoint.location.metrics.as_ref().map(|metrics| format!("metrics={metrics}"));
    let options: Vec<_> = [capacity, server_name, metrics].into_iter().flatten().collect();
    let mark = if options.is_empty() { "" } else { "?" };
    format!("{}={}{mark}{}", endpoint.name, endpoint.address, options.join("&"))
}

fn parse_name(text: &str) -> Result<Arc<str>, String> {
    match ServerName::try_from(text) {
        Ok(_name) => Ok(text.into()),
        Err(_invalid) => Err(format!("`{text}` is neither a DNS name nor an IP address")),
    }
}

fn parse_capacity(text: &str) -> Result<NonZeroU32, String> {
    match text.parse::<NonZeroU32>() {
        Ok(capacity) if capacity.get() <= MAX_CAPACITY => Ok(capacity),
        _ => Err(format!("`{text}` is not a number from 1 to {MAX_CAPACITY}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_an_address_is_read_and_written() {
        for written in [
            "a=tcp://x:1",
            "a=tcp://x:1?capacity=3",
            "a=tcp://x:1?server-name=b.test",
            "a=tcp://x:1?capacity=3&server-name=10.0.0.1",
            "a=tcp://x:1?capacity=3&metrics=10.0.0.1:6060",
            "a=unix:///s?metrics=[::1]:6060",
            "a=unix:///s",
        ] {
            let endpoint = parse(written).expect(written);
            assert_eq!(text(&endpoint), written);
        }
        assert_eq!(
            text(&parse("a=tcp://x:1?metrics=6060").expect("valid")),
            "a=tcp://x:1?metrics=x:6060"
        );
        for wrong in [
            "a=tcp://x:1?size=3",
            "a=tcp://x:1?capacity=0",
            "tcp://x:1?server-name=a b",
            "tcp://x:1?metrics=0",
            "tcp://x:1?metrics=http://x",
            "unix:///s?metrics=6060",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
