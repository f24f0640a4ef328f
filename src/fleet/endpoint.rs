//! What discovery knows about a daemon.

use std::{num::NonZeroU32, sync::Arc};

use crate::{
    address::{Address, HostPort},
    tls::Expected,
};

/// A daemon as discovery reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The stable name of the daemon in logs, metrics and the consistent hash.
    pub name: Arc<str>,
    /// The address on which the daemon listens.
    pub address: Address,
    /// The size of the daemon relative to others: with capacity 2 it gets twice the builds of a daemon with 1.
    pub capacity: NonZeroU32,
    /// Whether the operator lets the daemon take builds.
    pub condition: Condition,
    /// The zone, the node and the pod of the daemon.
    pub location: Location,
    /// The name in the daemon's certificate, if it speaks TLS.
    pub server_name: Expected,
}

/// Where a daemon runs and what kind it is, as far as discovery says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// The failure domain, as in `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The name of the machine.
    pub node: Option<Arc<str>>,
    /// The pod of the daemon.
    pub pod: Option<Pod>,
    /// Facts from the labels of the pod.
    pub labels: Labels,
    /// Where the daemon serves metrics of its own, if that is known.
    pub metrics: Option<HostPort>,
}

/// A pod, as Kubernetes knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pod {
    /// The namespace of the pod.
    pub namespace: Arc<str>,
    /// The name of the pod. A later pod may have the same name.
    pub name: Arc<str>,
    /// The unique id of the pod. It differs between two pods with the same name.
    pub uid: Arc<str>,
}

/// What the labels of a pod say about its daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// The label `app.kubernetes.io/version`.
    pub version: Option<Arc<str>>,
    /// The label `kubernetes.io/arch`, such as `amd64` or `arm64`.
    pub architecture: Option<Arc<str>>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

/// What the operator of a daemon says about it.
///
/// The order matters: if a name is reported twice, the smaller condition wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The daemon may take builds.
    #[default]
    Ready,
    /// The daemon must not get new builds for now. Running builds continue.
    NotReady,
    /// The daemon is about to stop: it finishes its builds and takes no new ones.
    Terminating,
}

impl Endpoint {
    /// An endpoint of capacity 1 that may take builds. Its certificate is expected to name the host of the address.
    pub fn new(name: impl Into<Arc<str>>, address: Address) -> Self {
        let name = name.into();
        let host = match &address {
            Address::Tcp { host, .. } => host.as_str().into(),
            Address::Unix(_) => Arc::clone(&name),
        };
        Self {
            name,
            server_name: Expected::Discovered(host),
            address,
            capacity: NonZeroU32::MIN,
            condition: Condition::default(),
            location: Location::default(),
        }
    }
}
