//! Single values of the file and the flags, each with the key it stands under in its problem.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};

use crate::address::{Address, AddressError, HostPort};

/// As much of a problem as somebody reads.
const MAX_PROBLEM_LEN: usize = 1000;

/// A string or a list of strings.
pub(super) fn list(key: &str, value: toml::Value, problems: &mut Vec<String>) -> Vec<String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    match value.try_into() {
        Ok(OneOrMany::One(text)) => vec![text],
        Ok(OneOrMany::Many(list)) => list,
        Err(_untyped) => {
            problems.push(format!("{key}: must be a string or a list of strings"));
            Vec::new()
        }
    }
}

/// A string, or a number as it would be written in one.
pub(super) fn text(key: &str, value: toml::Value, problems: &mut Vec<String>) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        other => {
            problems.push(format!("{key}: must be a string, found {}", other.type_str()));
            None
        }
    }
}

/// True or false.
pub(super) fn boolean(key: &str, value: &toml::Value, problems: &mut Vec<String>) -> Option<bool> {
    let boolean = value.as_bool();
    if boolean.is_none() {
        problems.push(format!("{key}: must be true or false"));
    }
    boolean
}

/// A table.
pub(super) fn table(
    key: &str,
    value: toml::Value,
    problems: &mut Vec<String>,
) -> Option<toml::Table> {
    match value {
        toml::Value::Table(table) => Some(table),
        other => {
            problems.push(format!("{key}: must be a table, found {}", other.type_str()));
            None
        }
    }
}

/// Parses a setting if it is there, and names it in the problem if that fails.
pub(super) fn check<T>(
    text: Option<&str>,
    key: &str,
    problems: &mut Vec<String>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    text.and_then(|text| match parse(text.trim()) {
        Ok(value) => Some(value),
        Err(problem) => {
            problems.push(format!("{key}: {problem}"));
            None
        }
    })
}

/// `HOST:PORT`, with or without `tcp://`. The host is looked up where it is used.
pub(super) fn parse_host_port(text: &str) -> Result<HostPort, String> {
    text.parse().map_err(|error: AddressError| error.to_string())
}

/// `unix:///PATH`, or `tcp://HOST:PORT` where the host is a literal loopback address.
pub(super) fn parse_control(text: &str) -> Result<Address, String> {
    let address: Address = text.parse().map_err(|error: AddressError| error.to_string())?;
    if let Address::Tcp { host, .. } = &address
        && !host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    {
        return Err(format!(
            "`{text}` is neither unix:///PATH nor a loopback address such as tcp://127.0.0.1:9091: whoever \
             reaches it may change things"
        ));
    }
    Ok(address)
}

/// As in 30s, 10m or 1h.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration such as 30s, 10m or 1h: {error}"))
}

/// A number from 1 to `most`.
pub(super) fn parse_count(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("`{text}` is not a number from 1 to {most}")),
    }
}

/// Bytes, as in 67108864, 64MiB or 1GiB: room for two of the largest messages at least.
pub(super) fn parse_budget(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 32 << 20;
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("", 0)];
    let bytes = units.into_iter().find_map(|(unit, shift)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(1 << shift)
    });
    bytes
        .filter(|bytes| (LEAST..=1 << 50).contains(bytes))
        .ok_or_else(|| format!("`{text}` is not a size such as 64MiB or 1GiB, from 32MiB on"))
}

/// One of the words of an enum.
pub(super) fn parse_choice<T: DeserializeOwned>(text: &str, words: &str) -> Result<T, String> {
    T::deserialize(toml::Value::String(text.to_owned()))
        .map_err(|_unknown| format!("`{text}` is not one of {words}"))
}

/// A problem on one line of bounded length: it quotes what may be anything.
pub(super) fn one_line(problem: &str) -> String {
    let mut line: String = problem.chars().take(MAX_PROBLEM_LEN).collect();
    if line.len() < problem.len() {
        line.push('…');
    }
    line.chars().flat_map(escaped).collect()
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escape.into_iter().flatten().chain(plain)
}
