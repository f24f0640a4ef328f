//! What discovery knows of a daemon.

use std::{num::NonZeroU32, sync::Arc};

use crate::{address::Address, tls::Expected};

/// What discovery reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stable name: what logs, metrics and the consistent hash know the daemon by.
    pub name: Arc<str>,
    /// Where the daemon listens.
    pub address: Address,
    /// Its size against the others': one with 2 is given twice the builds of one with 1.
    pub capacity: NonZeroU32,
    /// Whether it may be given builds, in the eyes of whoever runs it.
    pub condition: Condition,
    /// Where it runs.
    pub location: Location,
    /// Which name its certificate has, if it speaks TLS.
    pub server_name: Expected,
}

/// Where a daemon runs and as what, as far as discovery says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// Its failure domain, as `topology.kubernetes.io/zone` names it.
    pub zone: Option<Arc<str>>,
    /// The machine.
    pub node: Option<Arc<str>>,
    /// The pod that it is.
    pub pod: Option<Pod>,
    /// What the labels of its pod say.
    pub labels: Labels,
}

/// One pod, as Kubernetes knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name, which the next one may have too.
    pub name: Arc<str>,
    /// What tells it from the next one of its name.
    pub uid: Arc<str>,
}

/// What a pod's labels say of the daemon in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `app.kubernetes.io/version`.
    pub version: Option<Arc<str>>,
    /// `kubernetes.io/arch`, as `amd64` or `arm64`.
    pub architecture: Option<Arc<str>>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
}

/// What whoever runs a daemon says of it.
///
/// Ordered: of two reports of one name the smaller is the one to follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// It may take builds.
    #[default]
    Ready,
    /// It is to be given none for now; what runs there goes on.
    NotReady,
    /// It is about to end: it finishes its builds and takes no new one.
    Terminating,
}

impl Endpoint {
    /// An endpoint of capacity 1 that may take builds. Its certificate is for the host of its address.
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
