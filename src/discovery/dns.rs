//! The daemons that a DNS name stands for: its addresses, or the targets of its SRV records.
//!
//! For those who may not ask the Kubernetes API, or have none. DNS says nothing of a daemon that ends,
//! so its fleet is a little behind, and health has to find out.

use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    str::FromStr,
    time::{Duration, Instant},
};

use futures_util::future::try_join_all;
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};
use tokio_util::sync::CancellationToken;

use super::Source;
use crate::{
    address::Address,
    fleet::Endpoint,
    outage::{Backoff, Reason},
    tls::Expected,
};

/// However short its records live, a name is not asked for more often.
const SHORTEST: Duration = Duration::from_secs(1);

/// However long they live, it is asked for this often: a fleet changes faster than its zone's defaults.
const LONGEST: Duration = Duration::from_secs(60);

/// A name that stands for daemons.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// Its addresses are those of the daemons, all at this port.
    Addresses(String, u16),
    /// Its SRV records name the daemons and their ports.
    Services(String),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_name = |name: &str| {
            (1..=253).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
        };
        match text.split_once(':') {
            None if text.starts_with('_') && is_name(text) => Ok(Self::Services(text.to_owned())),
            Some((name, port)) if is_name(name) && !name.starts_with('_') => match port.parse() {
                Ok(port) if port > 0 => Ok(Self::Addresses(name.to_owned(), port)),
                _ => Err(format!("port `{port}` is not a number from 1 to 65535")),
            },
            _ => Err(format!("`{text}` is neither NAME:PORT nor _SERVICE._tcp.NAME")),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(name, port) => write!(f, "{name}:{port}"),
            Self::Services(name) => f.write_str(name),
        }
    }
}

/// A resolver that asks `server`, else those of `/etc/resolv.conf`.
///
/// # Errors
/// That file cannot be used.
pub fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => TokioResolver::builder_tokio()?,
        Some(address) => {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (address.port(), address.port());
            let server = NameServerConfig::new(address.ip(), true, vec![udp, tcp]);
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    // A daemon with an address of each family is one daemon.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    // When to ask again is ours to say.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    builder.build()
}

/// Follows `name` until `stop`.
pub async fn run(resolver: TokioResolver, name: Name, source: Source, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    loop {
        let looked_up = tokio::select! {
            () = stop.cancelled() => return,
            looked_up = look_up(&resolver, &name) => looked_up,
        };
        let wait = match looked_up {
            Ok((endpoints, until)) => {
                source.found(endpoints, None);
                backoff = Backoff::default();
                until.saturating_duration_since(Instant::now()).clamp(SHORTEST, LONGEST)
            }
            Err(error) => {
                source.failed(Reason::Unreachable, format!("cannot look up {name}: {error}"));
                backoff.wait()
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The daemons, and how long that holds. No record is an error: an answer that is wrong for a moment
/// must not take all daemons away, and one that is right is found out by health.
async fn look_up(
    resolver: &TokioResolver,
    name: &Name,
) -> Result<(Vec<Endpoint>, Instant), NetError> {
    let (mut endpoints, until) = match name {
        Name::Addresses(name, port) => {
            let found = resolver.lookup_ip(name.as_str()).await?;
            let server_name = Expected::Discovered(name.trim_end_matches('.').into());
            let endpoint = |ip: std::net::IpAddr| {
                let host = ip.to_string();
                let address = Address::Tcp { host: host.clone(), port: *port };
                Endpoint { server_name: server_name.clone(), ..Endpoint::new(host, address) }
            };
            (found.iter().map(endpoint).collect::<Vec<_>>(), found.valid_until())
        }
        Name::Services(name) => services(resolver, name).await?,
    };
    endpoints.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((endpoints, until))
}

async fn services(
    resolver: &TokioResolver,
    name: &str,
) -> Result<(Vec<Endpoint>, Instant), NetError> {
    let found = resolver.srv_lookup(name).await?;
    let targets = found.answers().iter().filter_map(|record| match &record.data {
        RData::SRV(service) => Some((service.target.to_string(), service.port)),
        _ => None,
    });
    let looked_up = targets.map(|(target, port)| async move {
        match resolver.lookup_ip(target.as_str()).await {
            Ok(found) => Ok(Some((target, port, found))),
            // A target without an address is a daemon that is about to come or go.
            Err(error) if error.is_no_records_found() => Ok(None),
            Err(error) => Err(error),
        }
    });
    let mut until = found.valid_until();
    let mut endpoints = Vec::new();
    let mut names = HashSet::new();
    for (target, port, found) in try_join_all(looked_up).await?.into_iter().flatten() {
        until = until.min(found.valid_until());
        let Some(ip) = found.iter().next() else { continue };
        // The first label is a pod's name in a StatefulSet.
        let full = target.trim_end_matches('.');
        let first = full.split('.').next().unwrap_or(full);
        let name = if names.insert(first.to_owned()) { first } else { full };
        let address = Address::Tcp { host: ip.to_string(), port };
        let server_name = Expected::Discovered(full.into());
        endpoints.push(Endpoint { server_name, ..Endpoint::new(name, address) });
    }
    Ok((endpoints, until))
}

#[cfg(test)]
mod tests;
