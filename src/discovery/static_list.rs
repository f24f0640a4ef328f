//! Daemons that the configuration names: `[NAME=]tcp://HOST:PORT` or `[NAME=]unix:///PATH`, with
//! `?capacity=NUMBER` if they are not alike.

use std::num::NonZeroU32;

use crate::{address::Address, fleet::Endpoint};

/// Capacities compare backends: a larger one than this compares nothing.
const MAX_CAPACITY: u32 = 10_000;

/// The longest name: as long as a pod's may be.
const MAX_NAME_LEN: usize = 253;

/// Reads one daemon; without a name its address is the name.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Endpoint, String> {
    let (plain, capacity) = match text.rsplit_once("?capacity=") {
        Some((plain, capacity)) => (plain, parse_capacity(capacity)?),
        None => (text, NonZeroU32::MIN),
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
    Ok(Endpoint { capacity, ..Endpoint::new(name, address) })
}

/// Whether logs, metrics and paths of the admin port can show `name`.
fn is_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    name.len() <= MAX_NAME_LEN && name.bytes().all(known)
}

/// What [`parse`] reads.
pub fn text(endpoint: &Endpoint) -> String {
    let capacity = match endpoint.capacity.get() {
        1 => String::new(),
        capacity => format!("?capacity={capacity}"),
    };
    format!("{}={}{capacity}", endpoint.name, endpoint.address)
}

fn parse_capacity(text: &str) -> Result<NonZeroU32, String> {
    match text.parse::<NonZeroU32>() {
        Ok(capacity) if capacity.get() <= MAX_CAPACITY => Ok(capacity),
        _ => Err(format!("`{text}` is not a number from 1 to {MAX_CAPACITY}")),
    }
}
