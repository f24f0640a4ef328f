//! The daemons that the EndpointSlices of a Service describe. A pure function from slices to endpoints.
//!
//! Kubernetes may list one pod several times: in a slice for IPv4 and one for IPv6, or in two slices while it moves from
//! one to the other. In a StatefulSet, a pod and its successor have the same name. Each pod must become one daemon, and
//! the result must be the same each time.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::discovery::v1::{
    Endpoint as Entry, EndpointConditions, EndpointPort, EndpointSlice,
};

use super::Port;
use crate::{
    address::{Address, HostPort},
    fleet::{Condition, Endpoint, Labels, Location, Pod},
};

/// The names of ports that are tried if the configuration names none, in this order.
const USUAL_PORTS: [&str; 4] = ["buildkit", "buildkitd", "grpc", "tcp"];

/// Identifies a pod. A pod and its successor may have the same name, but never the same uid.
type Identity<'a> = (&'a str, Option<&'a str>);

/// The addresses of one pod, IPv4 first, and its state in all slices together.
#[derive(Debug)]
struct PodEntry {
    family: u8,
    address: Address,
    condition: Condition,
    location: Location,
}

/// The daemons in `slices`, sorted by name. No two have the same name or the same address. They serve metrics at the
/// port that has the name `metrics`.
pub(super) fn endpoints<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: &Port,
    metrics: Option<&str>,
) -> Vec<Endpoint> {
    let metrics = metrics.map(|name| Port::Name(name.to_owned()));
    let mut pods: HashMap<Identity, PodEntry> = HashMap::new();
    for slice in slices {
        let Some(port) = number(slice, port) else { continue };
        let metrics = metrics.as_ref().and_then(|metrics| number(slice, metrics));
        for entry in slice.endpoints.iter().flatten() {
            let Some((family, host)) = host(slice, entry) else { continue };
            let pod_entry = PodEntry {
                family,
                address: Address::Tcp { host: host.to_owned(), port },
                condition: condition(entry.conditions.as_ref()),
                location: Location {
                    zone: entry.zone.as_deref().map(Into::into),
                    node: entry.node_name.as_deref().map(Into::into),
                    pod: pod(slice, entry),
                    labels: Labels::default(),
                    metrics: metrics.map(|port| HostPort { host: host.to_owned(), port }),
                },
            };
            let identity = identity(entry, host);
            match pods.get_mut(&identity) {
                Some(known) => known.merge(pod_entry),
                None => {
                    pods.insert(identity, pod_entry);
                }
            }
        }
    }
    one_of_each(pods)
}

/// The ports in the slices, for the message that no port fits.
pub(super) fn port_names<'a>(slices: impl IntoIterator<Item = &'a EndpointSlice>) -> String {
    let names = slices.into_iter().flat_map(|slice| slice.ports.iter().flatten()).map(|port| {
        let number = port.port.map_or_else(|| "any".to_owned(), |number| number.to_string());
        match port.name.as_deref() {
            None | Some("") => number,
            Some(name) => format!("{name} ({number})"),
        }
    });
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names.join(", ")
}

impl PodEntry {
    /// Merges two entries of one pod.
    fn merge(&mut self, other: Self) {
        // Termination cannot be undone, so an entry that says otherwise is older.
        self.condition = match (self.condition, other.condition) {
            (Condition::Terminating, _) | (_, Condition::Terminating) => Condition::Terminating,
            (one, two) => one.min(two),
        };
        if (other.family, other.address.to_string()) < (self.family, self.address.to_string()) {
            (self.family, self.address) = (other.family, other.address);
            self.location.metrics = other.location.metrics;
        }
        self.location.zone = self.location.zone.take().or(other.location.zone);
        self.location.node = self.location.node.take().or(other.location.node);
        self.location.pod = self.location.pod.take().or(other.location.pod);
    }
}

/// Keeps one pod per name and per address. A pod that is not terminating wins.
fn one_of_each(pods: HashMap<Identity, PodEntry>) -> Vec<Endpoint> {
    let mut pods: Vec<_> = pods.into_iter().collect();
    pods.sort_by(|((one, one_id), a), ((two, two_id), b)| {
        // The uid decides if nothing else does, so that the result is always the same.
        (a.condition, one, one_id).cmp(&(b.condition, two, two_id))
    });
    let mut names = BTreeMap::new();
    let mut addresses = HashMap::new();
    for ((name, _id), pod) in pods {
        if names.contains_key(name) || addresses.contains_key(&pod.address) {
            continue;
        }
        addresses.insert(pod.address.clone(), ());
        let endpoint = Endpoint::new(name, pod.address);
        names.insert(
            name,
            Endpoint { condition: pod.condition, location: pod.location, ..endpoint },
        );
    }
    names.into_values().collect()
}

fn identity<'a>(entry: &'a Entry, host: &'a str) -> Identity<'a> {
    let given = |name: &'a Option<String>| name.as_deref().filter(|name| !name.is_empty());
    let target = entry.target_ref.as_ref();
    match target.and_then(|target| given(&target.name)) {
        Some(name) => (name, target.and_then(|target| given(&target.uid))),
        None => (given(&entry.hostname).unwrap_or(host), None),
    }
}

/// The pod of an entry, if the entry is a pod.
fn pod(slice: &EndpointSlice, entry: &Entry) -> Option<Pod> {
    let target = entry.target_ref.as_ref()?;
    let given = |text: Option<&String>| text.filter(|text| !text.is_empty()).map(|t| t[..].into());
    let namespace = target.namespace.as_ref().or(slice.metadata.namespace.as_ref());
    match target.kind.as_deref() {
        Some("Pod") => Some(Pod {
            namespace: given(namespace)?,
            name: given(target.name.as_ref())?,
            uid: given(target.uid.as_ref())?,
        }),
        _ => None,
    }
}

/// As Kubernetes defines it, an absent `ready` or `serving` is true, and an absent `terminating` is false.
fn condition(conditions: Option<&EndpointConditions>) -> Condition {
    let Some(conditions) = conditions else { return Condition::Ready };
    if conditions.terminating == Some(true) {
        return Condition::Terminating;
    }
    // If a Service publishes addresses that are not ready, `ready` is always true, but `serving` tells.
    match conditions.ready.unwrap_or(true) && conditions.serving.unwrap_or(true) {
        true => Condition::Ready,
        false => Condition::NotReady,
    }
}

/// The entry's address, as Kubernetes means it: any one of the list, so the first.
fn host<'a>(slice: &EndpointSlice, entry: &'a Entry) -> Option<(u8, &'a str)> {
    let host = entry.addresses.first()?.as_str();
    match (slice.address_type.as_str(), host.parse()) {
        ("IPv4", Ok(IpAddr::V4(_))) => Some((0, host)),
        ("IPv6", Ok(IpAddr::V6(_))) => Some((1, host)),
        ("FQDN", Err(_)) if is_domain(host) => Some((2, host)),
        _ => None,
    }
}

fn is_domain(host: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=253).contains(&host.len()) && host.bytes().all(allowed)
}

/// The slice's number for the port that is asked for.
fn number(slice: &EndpointSlice, port: &Port) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let mut tcp = ports.iter().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let found = match port {
        Port::Number(number) => return Some(*number),
        Port::Name(name) => tcp.find(|port| port_name(port) == name),
        Port::Usual => {
            let tcp: Vec<_> = tcp.collect();
            let usual = |name: &&str| tcp.iter().find(|port| port_name(port) == *name).copied();
            USUAL_PORTS.iter().find_map(usual).or(match tcp[..] {
                [only] => Some(only),
                _ => None,
            })
        }
    };
    u16::try_from(found?.port?).ok().filter(|number| *number != 0)
}

fn port_name(port: &EndpointPort) -> &str {
    port.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
