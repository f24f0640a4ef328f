//! The settings of one pool.

use std::{collections::HashSet, fmt, hash::Hash};

use super::{
    affinity,
    sections::Sections,
    text::list,
    tls::{Tls, TlsSettings},
    value::{Count, Span},
};
use crate::{
    address::Address,
    affinity::Rules,
    discovery::{MetricsPort, Target, static_list},
    fleet::{self, Endpoint},
    metrics::DEFAULT_POOL,
    networks::Network,
    placement::{queue, warm},
    policy::{self, LoadFactor, PolicyKind},
};
use serde::{Deserialize, Serialize};

/// The settings of one pool. Outside `[[pool]]` they are the settings of the only pool, or the defaults of all pools. A
/// field is a key of the file, and unless it is a table, a flag and a variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct Pool {
    /// The name in logs and metrics. Only a `[[pool]]` gives one.
    #[arg(skip)]
    #[serde(skip_deserializing, skip_serializing_if = "is_unnamed")]
    pub name: String,
    /// Address where clients connect: tcp://HOST:PORT, HOST:PORT or unix:///PATH. Repeatable.
    #[arg(
        help_heading = "Clients",
        long,
        value_name = "ADDR",
        default_value = "tcp://0.0.0.0:1234"
    )]
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<Address>,
    /// A daemon: [NAME=]tcp://HOST:PORT or [NAME=]unix:///PATH. A daemon with ?capacity=2 gets twice the builds of one
    /// with capacity 1, the default. Repeatable.
    #[arg(help_heading = "Daemons", long, value_name = "[NAME=]ADDR[?capacity=N]", value_parser = static_list::parse)]
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<Endpoint>,
    /// Where daemons are found: kubernetes://NAMESPACE/SERVICE, kubernetes://NAMESPACE/SERVICE:PORT, dns://NAME:PORT or
    /// dns://_SERVICE._tcp.NAME. Repeatable, also beside --backend. One of the two is needed.
    #[arg(help_heading = "Daemons", long, value_name = "URL")]
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<Target>,
    /// Port at which daemons serve metrics of their own (buildkitd --debugaddr), from which the proxy reads how many steps
    /// were cached: a number, or the name of a port of the Service. A --backend may have ?metrics=PORT instead
    /// [default: none].
    #[arg(help_heading = "Daemons", long, value_name = "PORT")]
    pub backend_metrics_port: Option<MetricsPort>,
    /// How builds are spread: random, least-builds or consistent-hash.
    #[arg(help_heading = "Placement", long, value_name = "POLICY", default_value_t)]
    pub policy: PolicyKind,
    /// Let the unlinked targets of one bake go to different backends. A bake with linked targets may then fail.
    #[arg(help_heading = "Placement", long)]
    pub spread_bake_targets: bool,
    /// How long a backend that joins a running fleet gets less than its share of the builds: a tenth at first, then
    /// more and more. 0s turns this off.
    #[arg(help_heading = "Placement", long, value_name = "DURATION", default_value_t = policy::Policy::default().slow_start.into())]
    pub slow_start: Span,
    /// How long other backends are preferred to a backend that fails builds for reasons of its own, such as a full disk.
    /// Each further time lasts twice as long as the one before, up to 32 times this duration. 0s turns this off.
    #[arg(help_heading = "Placement", long, value_name = "DURATION", default_value_t = fleet::DEFAULT_PROBATION.into())]
    pub probation: Span,
    /// Network of the proxies or load balancers in front, for example 10.0.0.0/8. They must begin each connection with
    /// a PROXY header of version 1 or 2, which has the address of the client. Repeatable [default: none].
    #[arg(help_heading = "Clients", long, value_name = "NETWORK")]
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_from: Vec<Network>,
    /// Builds that a backend runs at once for each unit of its capacity. Further builds wait for their turn [default: no
    /// limit].
    #[arg(help_heading = "Placement", long, value_name = "COUNT")]
    pub max_builds: Option<Count<100_000>>,
    /// How long a build waits at most for a backend or, with max-builds, for a free slot. 0s turns this off: the build
    /// is refused at once [default: 5m, with max-builds 30m].
    #[arg(help_heading = "Placement", long, value_name = "DURATION")]
    pub max_wait: Option<Span>,
    /// How long a build waits for a slot on the backend that has its cache while another backend has a free one. 0s
    /// turns this off.
    #[arg(help_heading = "Placement", long, value_name = "DURATION", default_value_t = queue::Config::default().affinity_wait.into())]
    pub affinity_wait: Span,
    /// Builds that wait at once in a pool. Further builds are refused.
    #[arg(help_heading = "Placement", long, value_name = "COUNT", default_value_t = Count::nearest(queue::Config::default().max_waiting))]
    pub max_waiting: Count<100_000>,
    /// Builds of one client address that wait at once in a pool. Further builds are refused.
    #[arg(help_heading = "Placement", long, value_name = "COUNT", default_value_t = Count::nearest(queue::Config::default().max_waiting_per_client))]
    pub max_waiting_per_client: Count<100_000>,
    /// Show a build that waits as a step in its client's progress.
    #[arg(help_heading = "Placement", long, default_value = "true")]
    pub queue_progress: bool,
    /// The load limit of the consistent hash.
    #[arg(skip)]
    #[serde(default)]
    pub consistent_hash: ConsistentHash,
    /// For how many keys, and how long, the proxy remembers where they were built.
    #[arg(skip)]
    #[serde(default)]
    pub warm_memory: WarmMemory,
    /// How a build gets its affinity key.
    #[arg(skip)]
    #[serde(skip_deserializing, serialize_with = "affinity::serialize")]
    pub affinity: Rules,
    /// The checked settings of TLS to clients and daemons.
    #[arg(skip)]
    #[serde(skip)]
    pub tls: Tls,
}

/// The `[consistent-hash]` table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ConsistentHash {
    /// How many times its share of all builds a backend may run.
    pub load_factor: LoadFactor,
}

/// The `[warm-memory]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct WarmMemory {
    /// Whether the proxy remembers where keys were built.
    pub enabled: bool,
    /// The most keys. Ten million take most of a gigabyte, so more than that is a mistake.
    pub max_keys: Count<10_000_000>,
    /// How long a key is remembered after its last build.
    pub ttl: Span,
}

impl Default for WarmMemory {
    fn default() -> Self {
        let warm::Config { enabled, max_keys, ttl } = warm::Config::default();
        let max_keys = usize::try_from(max_keys.get()).unwrap_or(usize::MAX);
        Self { enabled, max_keys: Count::nearest(max_keys), ttl: Span(ttl) }
    }
}

impl Pool {
    /// Reads the settings of a pool and of its TLS. Values that contradict each other are not found yet.
    pub(super) fn read(
        sections: &mut Sections<'_>,
        problems: &mut Vec<String>,
    ) -> Option<(Self, TlsSettings)> {
        let affinity = sections.take("affinity");
        let mut pool: Self = sections.read(problems)?;
        if let Some(value) = affinity {
            pool.affinity = affinity::read(value, &sections.path("affinity"), problems);
        }
        Some((pool, sections.read(problems)?))
    }

    /// Fills in the defaults that depend on other settings, and checks what the types do not say.
    pub(super) fn complete(&mut self, path: &str, tls: &TlsSettings, problems: &mut Vec<String>) {
        let max_wait = queue::default_max_wait(self.max_builds.is_some());
        self.max_wait.get_or_insert(Span(max_wait));
        let names = self.backend.iter().map(|backend| &backend.name);
        report_twice(names, &format!("{path}backend: the name"), problems);
        let addresses = self.backend.iter().map(|backend| &backend.address);
        report_twice(addresses, &format!("{path}backend: the address"), problems);
        report_twice(&self.discover, &format!("{path}discover:"), problems);
        self.tls = Tls::check(path, tls, problems);
    }

    /// Whether the settings of this pool stand outside `[[pool]]`.
    pub(super) fn is_unnamed(&self) -> bool {
        is_unnamed(&self.name)
    }

    /// How a backend is chosen.
    pub fn policy(&self) -> policy::Policy {
        policy::Policy {
            kind: self.policy,
            load_factor: self.consistent_hash.load_factor,
            slow_start: self.slow_start.0,
            spread_bake_targets: self.spread_bake_targets,
            remembers: self.warm_memory.enabled,
        }
    }

    /// What the proxy remembers of where keys were built.
    pub fn warm(&self) -> warm::Config {
        let WarmMemory { enabled, max_keys, ttl: Span(ttl) } = self.warm_memory;
        warm::Config { enabled, max_keys: max_keys.non_zero(), ttl }
    }

    /// How builds wait for a backend.
    pub fn queue(&self) -> queue::Config {
        let max_builds = self.max_builds.map(Count::non_zero);
        queue::Config {
            max_builds,
            max_wait: self
                .max_wait
                .map_or(queue::default_max_wait(max_builds.is_some()), |max| max.0),
            affinity_wait: self.affinity_wait.0,
            max_waiting: self.max_waiting.get(),
            max_waiting_per_client: self.max_waiting_per_client.get(),
            progress: self.queue_progress,
        }
    }
}

/// Whether a pool of this name stands outside `[[pool]]`.
fn is_unnamed(name: &str) -> bool {
    ["", DEFAULT_POOL].contains(&name)
}

/// Reports each value that occurred before.
fn report_twice<T: Eq + Hash + fmt::Display>(
    values: impl IntoIterator<Item = T>,
    what: &str,
    problems: &mut Vec<String>,
) {
    let mut seen = HashSet::new();
    for value in values {
        if seen.contains(&value) {
            problems.push(format!("{what} `{value}` is given twice"));
        }
        seen.insert(value);
    }
}
