//! Daemons that the configuration names: `[NAME=]tcp://HOST:PORT` or `[NAME=]unix:///PATH`, with
//! `?capacity=NUMBER` if they are not alike, and `?server-name=NAME` if a certificate is for another name than
//! the host; both are joined by `&`.

use std::{num::NonZeroU32, sync::Arc};

use rustls::pki_types::ServerName;

use crate::{address::Address, fleet::Endpoint, tls::Expected};

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
    let endpoint = Endpoint::new(name, address);
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
}

impl Options {
    fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for option in text.split('&') {
            match option.split_once('=') {
                Some(("capacity", capacity)) => options.capacity = Some(parse_capacity(capacity)?),
                Some(("server-name", name)) => options.server_name = Some(parse_name(name)?),
                _ => {
                    return Err(format!(
                        "`?{option}` is neither ?capacity=N nor ?server-name=NAME"
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
    let options: Vec<_> = [capacity, server_name].into_iter().flatten().collect();
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
            "a=unix:///s",
        ] {
            let endpoint = parse(written).expect(written);
            assert_eq!(text(&endpoint), written);
        }
        for wrong in ["a=tcp://x:1?size=3", "a=tcp://x:1?capacity=0", "tcp://x:1?server-name=a b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
