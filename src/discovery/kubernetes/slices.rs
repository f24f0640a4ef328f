//! What the EndpointSlices of a Service say about its daemons. Pure: slices in, endpoints out.
//!
//! Kubernetes tells of one pod in many ways: in a slice for IPv4 and one for IPv6, in two slices while
//! it moves from one to the other, under one name after it was replaced by the next of a StatefulSet.
//! Each must come out as one daemon, and as the same one each time.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use k8s_openapi::api::discovery::v1::{
    Endpoint as Entry, EndpointConditions, EndpointPort, EndpointSlice,
};

use super::Port;
use crate::{
    address::Address,
    fleet::{Condition, Endpoint, Labels, Location, Pod},
};

/// Names of ports to look for if none is asked for, the most telling first.
const USUAL_PORTS: [&str; 4] = ["buildkit", "buildkitd", "grpc", "tcp"];

/// What tells pods apart: two of one name follow each other, with ids of their own.
type Identity<'a> = (&'a str, Option<&'a str>);

/// One pod's addresses, IPv4 first, and what all slices together say of it.
#[derive(Debug)]
struct PodEntry {
    family: u8,
    address: Address,
    condition: Condition,
    location: Location,
}

/// The daemons that `slices` tell of, sorted by name: each name once, each address once.
pub(super) fn endpoints<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    port: &Port,
) -> Vec<Endpoint> {
    let mut pods: HashMap<Identity, PodEntry> = HashMap::new();
    for slice in slices {
        let Some(port) = number(slice, port) else { continue };
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

/// The ports that the slices name, for a message that says why none fits.
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
    /// Joins what two entries say of one pod.
    fn merge(&mut self, other: Self) {
        // A pod does not come back from termination; before that, one slice may lag behind.
        self.condition = match (self.condition, other.condition) {
            (Condition::Terminating, _) | (_, Condition::Terminating) => Condition::Terminating,
            (one, two) => one.min(two),
        };
        if (other.family, other.address.to_string()) < (self.family, self.address.to_string()) {
            (self.family, self.address) = (other.family, other.address);
        }
        self.location.zone = self.location.zone.take().or(other.location.zone);
        self.location.node = self.location.node.take().or(other.location.node);
        self.location.pod = self.location.pod.take().or(other.location.pod);
    }
}

/// Of pods with one name, and of those with one address, the one that lives.
fn one_of_each(pods: HashMap<Identity, PodEntry>) -> Vec<Endpoint> {
    let mut pods: Vec<_> = pods.into_iter().collect();
    pods.sort_by(|((one, one_id), a), ((two, two_id), b)| {
        // The id only settles what nothing else does, so that the answer is always the same one.
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

/// The pod that an entry stands for, if it is one.
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

/// An absent condition is one that nobody had reason to doubt.
fn condition(conditions: Option<&EndpointConditions>) -> Condition {
    let Some(conditions) = conditions else { return Condition::Ready };
    if conditions.terminating == Some(true) {
        return Condition::Terminating;
    }
    // `ready` is always true where a Service publishes addresses that are not; `serving` is not.
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
