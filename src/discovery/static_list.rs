//! Daemons that the configuration names: `[NAME=]tcp://HOST:PORT` or `[NAME=]unix:///PATH`, with
//! `?capacity=NUMBER` if they are not alike.

use std::num::NonZeroU32;

use crate::{address::Address, fleet::Endpoint};

/// Capacities compare backends: a larger one than this compares nothing.
const MAX_CAPACITY: u32 = 10_000;

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
    let name = match name {
        Some("") => return Err(format!("name is empty in `{text}`")),
        Some(name) => name.to_owned(),
        None => {
            address.to_string().split_off(address.to_string().find("://").map_or(0, |at| at + 3))
        }
    };
    Ok(Endpoint { capacity, ..Endpoint::new(name, address) })
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
