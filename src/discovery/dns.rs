//! Finds daemons by a DNS name: its addresses, or the targets of its SRV records.
//!
//! For clusters whose API the proxy may not ask, and for places without Kubernetes. DNS does not announce that a daemon
//! ends, so the fleet is always a little out of date, and health probes find out.

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

/// The shortest time between two lookups of a name, even if its records expire sooner.
const SHORTEST: Duration = Duration::from_secs(1);

/// The longest time between two lookups, even if the records live longer: a fleet changes faster than the defaults of
/// its zone.
const LONGEST: Duration = Duration::from_secs(60);

/// A name that stands for daemons.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// Each address of the name is a daemon, at this port.
    Addresses(String, u16),
    /// Each SRV record of the name is a daemon and its port.
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

/// A resolver that asks `server`, or the servers of `/etc/resolv.conf` if `server` is `None`.
///
/// # Errors
/// `/etc/resolv.conf` cannot be read or has no server.
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
    // Two addresses of different families are one daemon.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    // `run` decides when to look up again.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    builder.build()
}

/// Looks `name` up again and again until `stop`.
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

/// The daemons, and when the answer expires. An answer without records is an error: if it is wrong, it must not remove
/// all daemons, and if it is right, health probes find out.
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
            // A daemon that starts or ends may have a record but no address.
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
        // In a StatefulSet the first label is the pod's name.
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
