//! One pool: its settings as they are written, and checked.

use std::{collections::HashSet, num::NonZeroU32, time::Duration};

use serde::Serialize;

use super::{
    tls::{Tls, TlsSettings},
    value::{boolean, check, list, parse_choice, parse_count, parse_duration, table, text},
};
use crate::{
    address::Address,
    affinity::Rules,
    discovery::{Target, static_list},
    fleet::{self, Endpoint},
    metrics::DEFAULT_POOL,
    networks::Network,
    placement::{queue, warm},
    policy::{self, LoadFactor},
};

/// BuildKit's usual port.
pub(super) const DEFAULT_LISTEN: &str = "tcp://0.0.0.0:1234";

/// The longest name of a pool: it stands in logs, metrics and addresses of the admin port.
const MAX_NAME: usize = 63;

/// Daemons that share what they are found by, where clients reach them, and how builds are spread.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// What logs and metrics call it.
    pub name: String,
    /// Where clients connect.
    pub listen: Vec<Address>,
    /// The daemons.
    pub backends: Vec<Endpoint>,
    /// Where more daemons are found.
    pub discover: Vec<Target>,
    /// How builds are spread.
    pub policy: policy::Policy,
    /// How long a degraded backend is avoided the first time; zero if none is to be.
    pub probation: Duration,
    /// What is remembered of where keys were built.
    pub warm: warm::Config,
    /// How builds wait for a backend.
    pub queue: queue::Config,
    /// What makes a build's affinity key.
    pub affinity: Rules,
    /// TLS to clients and daemons.
    pub tls: Tls,
    /// Whose connections begin with a PROXY header.
    pub proxy_protocol: Vec<Network>,
}

/// The settings that a pool can have of its own. Outside of `[[pool]]` they are those of the only pool,
/// or what the pools have if they do not say otherwise.
#[derive(Debug, Default, Clone, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct PoolSettings {
    /// The name, of `[[pool]]` alone.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Address where clients connect: tcp://HOST:PORT, HOST:PORT or unix:///PATH. Repeatable
    /// [default: tcp://0.0.0.0:1234].
    #[arg(
        help_heading = "Clients",
        long,
        env = "BUILDKIT_LB_LISTEN",
        value_delimiter = ',',
        value_name = "ADDR"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// A daemon: [NAME=]tcp://HOST:PORT or [NAME=]unix:///PATH. A daemon with ?capacity=2 gets twice the
    /// builds of one with capacity 1, the default. Repeatable.
    #[arg(
        help_heading = "Daemons",
        long,
        env = "BUILDKIT_LB_BACKEND",
        value_delimiter = ',',
        value_name = "[NAME=]ADDR[?capacity=N]"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<String>,
    /// Where daemons are found: kubernetes://NAMESPACE/SERVICE, kubernetes://NAMESPACE/SERVICE:PORT,
    /// dns://NAME:PORT or dns://_SERVICE._tcp.NAME. Repeatable, also beside --backend; one of the two is needed.
    #[arg(
        help_heading = "Daemons",
        long,
        env = "BUILDKIT_LB_DISCOVER",
        value_delimiter = ',',
        value_name = "URL"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<String>,
    /// How builds are spread: random, least-builds or consistent-hash [default: consistent-hash].
    #[arg(help_heading = "Placement", long, env = "BUILDKIT_LB_POLICY", value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Let the unlinked targets of one bake go to different backends. A bake with linked targets may then
    /// fail [default: false].
    #[arg(help_heading = "Placement", long, env = "BUILDKIT_LB_SPREAD_BAKE_TARGETS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread_bake_targets: Option<bool>,
    /// How long a backend that joins a running fleet gets less than its share of the builds: a tenth at
    /// first, then more and more. 0s turns this off [default: 30s].
    #[arg(
        help_heading = "Placement",
        long,
        env = "BUILDKIT_LB_SLOW_START",
        value_name = "DURATION"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    /// How long other backends are preferred to one that fails builds for reasons of its own, such as a full
    /// disk. Each further time is twice as long as the last one, up to 32 times this. 0s turns this off
    /// [default: 1m].
    #[arg(
        help_heading = "Placement",
        long,
        env = "BUILDKIT_LB_PROBATION",
        value_name = "DURATION"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probation: Option<String>,
    /// Network of proxies or load balancers in front that begin each connection with a PROXY header of version 1 or 2,
    /// as in 10.0.0.0/8. Their clients are then known by their own addresses. Repeatable [default: none].
    #[arg(
        help_heading = "Clients",
        long,
        env = "BUILDKIT_LB_PROXY_PROTOCOL_FROM",
        value_delimiter = ',',
        value_name = "NETWORK"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_from: Vec<String>,
    /// TLS to clients and daemons.
    #[command(flatten)]
    #[serde(flatten)]
    pub tls: TlsSettings,
    /// Builds that a backend runs at once for each unit of its capacity; further ones wait for their turn
    /// [default: no limit].
    #[arg(help_heading = "Placement", long, env = "BUILDKIT_LB_MAX_BUILDS", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_builds: Option<String>,
    /// How long a build waits at most for a backend or, with max-builds, for a free slot. 0s turns this off: the
    /// build is refused at once [default: 5m, with max-builds 30m].
    #[arg(help_heading = "Placement", long, env = "BUILDKIT_LB_MAX_WAIT", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<String>,
    /// How long a build waits for a slot on the backend that has its cache while another backend has a free
    /// one. 0s turns this off [default: 10s].
    #[arg(
        help_heading = "Placement",
        long,
        env = "BUILDKIT_LB_AFFINITY_WAIT",
        value_name = "DURATION"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_wait: Option<String>,
    /// Builds that wait at once in a pool; further ones are refused [default: 1000].
    #[arg(help_heading = "Placement", long, env = "BUILDKIT_LB_MAX_WAITING", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting: Option<String>,
    /// Builds of one client address that wait at once in a pool; further ones are refused [default: 100].
    #[arg(
        help_heading = "Placement",
        long,
        env = "BUILDKIT_LB_MAX_WAITING_PER_CLIENT",
        value_name = "COUNT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_waiting_per_client: Option<String>,
    /// Show a build that waits as a step in its client's progress [default: true].
    #[arg(help_heading = "Placement", long, env = "BUILDKIT_LB_QUEUE_PROGRESS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_progress: Option<bool>,
    /// The `[affinity]` table of the file: an ordered list does not fit into a flag.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<toml::Table>,
    /// The `[consistent-hash]` table of the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<toml::Table>,
    /// The `[warm-memory]` table of the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warm_memory: Option<toml::Table>,
}

impl PoolSettings {
    /// Sets one key; the value again if a pool has no such key.
    pub(super) fn set(
        &mut self,
        path: &str,
        key: &str,
        value: toml::Value,
        problems: &mut Vec<String>,
    ) -> Option<toml::Value> {
        match key {
            "listen" => self.listen = list(path, value, problems),
            "backend" => self.backend = list(path, value, problems),
            "discover" => self.discover = list(path, value, problems),
            "policy" => self.policy = text(path, value, problems),
            "spread-bake-targets" => self.spread_bake_targets = boolean(path, &value, problems),
            "slow-start" => self.slow_start = text(path, value, problems),
            "probation" => self.probation = text(path, value, problems),
            "max-builds" => self.max_builds = text(path, value, problems),
            "max-wait" => self.max_wait = text(path, value, problems),
            "affinity-wait" => self.affinity_wait = text(path, value, problems),
            "max-waiting" => self.max_waiting = text(path, value, problems),
            "max-waiting-per-client" => self.max_waiting_per_client = text(path, value, problems),
            "queue-progress" => self.queue_progress = boolean(path, &value, problems),
            "affinity" => self.affinity = table(path, value, problems),
            "consistent-hash" => self.consistent_hash = table(path, value, problems),
            "warm-memory" => self.warm_memory = table(path, value, problems),
            "proxy-protocol-from" => self.proxy_protocol_from = list(path, value, problems),
            _ => return self.tls.set(path, key, value, problems),
        }
        None
    }

    /// One `[[pool]]` of the file, called `path` in problems.
    pub(super) fn from_table(path: &str, table: toml::Table, problems: &mut Vec<String>) -> Self {
        let mut settings = Self::default();
        for (key, value) in table {
            let path = format!("{path}.{key}");
            if key == "name" {
                settings.name = text(&path, value, problems);
            } else if settings.set(&path, &key, value, problems).is_some() {
                problems.push(format!("{path}: unknown key"));
            }
        }
        settings
    }

    /// These settings where `over` has none.
    pub(super) fn under(self, over: Self) -> Self {
        let list = |over: Vec<_>, under| if over.is_empty() { under } else { over };
        Self {
            name: over.name.or(self.name),
            listen: list(over.listen, self.listen),
            backend: list(over.backend, self.backend),
            discover: list(over.discover, self.discover),
            policy: over.policy.or(self.policy),
            spread_bake_targets: over.spread_bake_targets.or(self.spread_bake_targets),
            slow_start: over.slow_start.or(self.slow_start),
            probation: over.probation.or(self.probation),
            proxy_protocol_from: list(over.proxy_protocol_from, self.proxy_protocol_from),
            tls: self.tls.under(over.tls),
            max_builds: over.max_builds.or(self.max_builds),
            max_wait: over.max_wait.or(self.max_wait),
            affinity_wait: over.affinity_wait.or(self.affinity_wait),
            max_waiting: over.max_waiting.or(self.max_waiting),
            max_waiting_per_client: over.max_waiting_per_client.or(self.max_waiting_per_client),
            queue_progress: over.queue_progress.or(self.queue_progress),
            affinity: over.affinity.or(self.affinity),
            consistent_hash: over.consistent_hash.or(self.consistent_hash),
            warm_memory: over.warm_memory.or(self.warm_memory),
        }
    }
}

impl Pool {
    /// Checks the only pool, whose settings stand outside of any `[[pool]]`.
    pub(super) fn only(settings: &PoolSettings, problems: &mut Vec<String>) -> Self {
        Self::check("", DEFAULT_POOL.to_owned(), settings, problems)
    }

    /// Checks one `[[pool]]`, called `path` in problems; what it does not say `common` does.
    ///
    /// The problems of `common` are not told again: see [`Self::check_common`].
    pub(super) fn named(
        path: &str,
        settings: &PoolSettings,
        common: &PoolSettings,
        problems: &mut Vec<String>,
    ) -> Self {
        let name = settings.name.clone().unwrap_or_default();
        if !is_name(&name) {
            problems.push(format!(
                "{path}.name: `{name}` is not a name of 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
            ));
        }
        if settings.listen.is_empty() {
            let text = "is needed, clients choose a pool by its address";
            problems.push(format!("{path}.listen: {text}"));
        }
        let mut hops = settings.proxy_protocol_from.clone();
        if hops.is_empty() {
            hops.clone_from(&common.proxy_protocol_from);
        }
        let settings = &PoolSettings {
            tls: common.tls.clone().under(settings.tls.clone()),
            proxy_protocol_from: hops,
            ..settings.clone()
        };
        let own = Self::check(&format!("{path}."), name, settings, problems);
        let settings = common.clone().under(settings.clone());
        let (policy, warm, affinity) = check_spread("", &settings, &mut Vec::new());
        let probation = check_probation("", &settings, &mut Vec::new());
        let queue = check_queue("", &settings, &mut Vec::new());
        Self { policy, warm, affinity, probation, queue, ..own }
    }

    /// Checks what stands outside of `[[pool]]` where there is any: how builds are spread if a pool
    /// does not say it, and nothing else.
    pub(super) fn check_common(common: &PoolSettings, problems: &mut Vec<String>) {
        let members = [
            ("listen", &common.listen),
            ("backend", &common.backend),
            ("discover", &common.discover),
        ];
        for (key, _given) in members.iter().filter(|(_key, given)| !given.is_empty()) {
            problems.push(format!("{key}: move this into a [[pool]]"));
        }
        check_spread("", common, problems);
        check_probation("", common, problems);
        check_queue("", common, problems);
    }

    fn check(
        path: &str,
        name: String,
        settings: &PoolSettings,
        problems: &mut Vec<String>,
    ) -> Self {
        if settings.backend.is_empty() && settings.discover.is_empty() {
            problems.push(format!(
                "{path}backend: at least one is needed, as [NAME=]tcp://HOST:PORT, or discover"
            ));
        }
        let listen = check_listen(path, &settings.listen, problems);
        let backends = check_backends(path, &settings.backend, problems);
        let discover = check_discover(path, &settings.discover, problems);
        let (policy, warm, affinity) = check_spread(path, settings, problems);
        let probation = check_probation(path, settings, problems);
        let tls = Tls::check(path, &settings.tls, problems);
        let proxy_protocol = check_networks(path, &settings.proxy_protocol_from, problems);
        let queue = check_queue(path, settings, problems);
        Self {
            name,
            listen,
            backends,
            discover,
            policy,
            probation,
            warm,
            queue,
            affinity,
            tls,
            proxy_protocol,
        }
    }

    /// The settings that give this pool; `name` if it stands in a `[[pool]]`.
    pub(super) fn settings(&self, name: Option<String>) -> PoolSettings {
        let factor = self.policy.load_factor.to_string();
        let queue = &self.queue;
        PoolSettings {
            name,
            listen: self.listen.iter().map(ToString::to_string).collect(),
            backend: self.backends.iter().map(static_list::text).collect(),
            discover: self.discover.iter().map(ToString::to_string).collect(),
            policy: Some(self.policy.kind.to_string()),
            spread_bake_targets: Some(self.policy.spread_bake_targets),
            slow_start: Some(humantime::format_duration(self.policy.slow_start).to_string()),
            probation: Some(humantime::format_duration(self.probation).to_string()),
            proxy_protocol_from: self.proxy_protocol.iter().map(ToString::to_string).collect(),
            tls: self.tls.settings(),
            max_builds: queue.max_builds.map(|count| count.to_string()),
            max_wait: Some(humantime::format_duration(queue.max_wait).to_string()),
            affinity_wait: Some(humantime::format_duration(queue.affinity_wait).to_string()),
            max_waiting: Some(queue.max_waiting.to_string()),
            max_waiting_per_client: Some(queue.max_waiting_per_client.to_string()),
            queue_progress: Some(queue.progress),
            affinity: Some(self.affinity.to_table()),
            consistent_hash: Some(toml::Table::from_iter([(
                "load-factor".to_owned(),
                factor.into(),
            )])),
            warm_memory: Some(warm_table(&self.warm)),
        }
    }
}

fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(known)
}

/// How builds are spread.
fn check_spread(
    path: &str,
    settings: &PoolSettings,
    problems: &mut Vec<String>,
) -> (policy::Policy, warm::Config, Rules) {
    let policy = check_policy(path, settings, problems);
    let warm = check_warm(path, settings.warm_memory.clone().unwrap_or_default(), problems);
    let affinity = match &settings.affinity {
        Some(table) => Rules::from_table(table.clone(), &format!("{path}affinity"), problems),
        None => Rules::default(),
    };
    (policy::Policy { remembers: warm.enabled, ..policy }, warm, affinity)
}

fn check_policy(path: &str, settings: &PoolSettings, problems: &mut Vec<String>) -> policy::Policy {
    let default = policy::Policy::default();
    let kind = check(settings.policy.as_deref(), &format!("{path}policy"), problems, |text| {
        parse_choice(text, "random, least-builds or consistent-hash")
    });
    let slow_start = check(
        settings.slow_start.as_deref(),
        &format!("{path}slow-start"),
        problems,
        parse_duration,
    );
    let mut load_factor: Option<LoadFactor> = None;
    for (key, value) in settings.consistent_hash.clone().unwrap_or_default() {
        let path = format!("{path}consistent-hash.{key}");
        match key.as_str() {
            "load-factor" => {
                let text = text(&path, value, problems);
                load_factor = check(text.as_deref(), &path, problems, str::parse);
            }
            _ => problems.push(format!("{path}: unknown key")),
        }
    }
    policy::Policy {
        kind: kind.unwrap_or(default.kind),
        load_factor: load_factor.unwrap_or(default.load_factor),
        slow_start: slow_start.unwrap_or(default.slow_start),
        spread_bake_targets: settings.spread_bake_targets.unwrap_or_default(),
        remembers: default.remembers,
    }
}

fn check_probation(path: &str, settings: &PoolSettings, problems: &mut Vec<String>) -> Duration {
    let key = format!("{path}probation");
    let probation = check(settings.probation.as_deref(), &key, problems, parse_duration);
    probation.unwrap_or(fleet::DEFAULT_PROBATION)
}

fn check_queue(path: &str, settings: &PoolSettings, problems: &mut Vec<String>) -> queue::Config {
    let default = queue::Config::default();
    let mut count = |text: &Option<String>, key: &str| {
        // Each that waits takes some KB, and its client a connection.
        check(text.as_deref(), &format!("{path}{key}"), problems, |text| parse_count(text, 100_000))
    };
    let max_builds = count(&settings.max_builds, "max-builds");
    let max_waiting = count(&settings.max_waiting, "max-waiting");
    let per_client = count(&settings.max_waiting_per_client, "max-waiting-per-client");
    let mut duration = |text: &Option<String>, key: &str| {
        check(text.as_deref(), &format!("{path}{key}"), problems, parse_duration)
    };
    let affinity_wait = duration(&settings.affinity_wait, "affinity-wait");
    let max_wait = duration(&settings.max_wait, "max-wait");
    let max_builds =
        max_builds.and_then(|count| u32::try_from(count).ok()).and_then(NonZeroU32::new);
    queue::Config {
        max_builds,
        max_wait: max_wait.unwrap_or(queue::default_max_wait(max_builds.is_some())),
        affinity_wait: affinity_wait.unwrap_or(default.affinity_wait),
        max_waiting: max_waiting.unwrap_or(default.max_waiting),
        max_waiting_per_client: per_client.unwrap_or(default.max_waiting_per_client),
        progress: settings.queue_progress.unwrap_or(default.progress),
    }
}

fn check_warm(path: &str, table: toml::Table, problems: &mut Vec<String>) -> warm::Config {
    let mut warm = warm::Config::default();
    for (key, value) in table {
        let path = format!("{path}warm-memory.{key}");
        match key.as_str() {
            "enabled" => warm.enabled = boolean(&path, &value, problems).unwrap_or(warm.enabled),
            "max-keys" => {
                let text = text(&path, value, problems);
                let keys = check(text.as_deref(), &path, problems, parse_warm_keys);
                warm.max_keys = keys.unwrap_or(warm.max_keys);
            }
            "ttl" => {
                let text = text(&path, value, problems);
                let ttl = check(text.as_deref(), &path, problems, parse_duration);
                warm.ttl = ttl.unwrap_or(warm.ttl);
            }
            _ => problems.push(format!("{path}: unknown key")),
        }
    }
    warm
}

fn warm_table(warm: &warm::Config) -> toml::Table {
    toml::Table::from_iter([
        ("enabled".to_owned(), warm.enabled.into()),
        ("max-keys".to_owned(), i64::from(warm.max_keys.get()).into()),
        ("ttl".to_owned(), humantime::format_duration(warm.ttl).to_string().into()),
    ])
}

/// Ten million are most of a gigabyte: more is a mistake.
fn parse_warm_keys(text: &str) -> Result<NonZeroU32, String> {
    let count = parse_count(text, 10_000_000)?;
    let count = u32::try_from(count).ok().and_then(NonZeroU32::new);
    count.ok_or_else(|| format!("`{text}` is not a number from 1 to 10000000"))
}

fn check_listen(path: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<Address> {
    let default = [DEFAULT_LISTEN.to_owned()];
    let texts = if texts.is_empty() { &default } else { texts };
    let parse = |text: &str| text.parse::<Address>().map_err(|error| error.to_string());
    texts
        .iter()
        .filter_map(|text| check(Some(text), &format!("{path}listen"), problems, parse))
        .collect()
}

fn check_networks(path: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<Network> {
    let key = format!("{path}proxy-protocol-from");
    texts.iter().filter_map(|text| check(Some(text), &key, problems, str::parse)).collect()
}

fn check_discover(path: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<Target> {
    let targets: Vec<Target> = texts
        .iter()
        .filter_map(|text| check(Some(text), &format!("{path}discover"), problems, str::parse))
        .collect();
    let mut seen = HashSet::new();
    for target in targets.iter().filter(|target| !seen.insert(*target)) {
        problems.push(format!("{path}discover: `{target}` is given twice"));
    }
    targets
}

fn check_backends(path: &str, texts: &[String], problems: &mut Vec<String>) -> Vec<Endpoint> {
    let backends: Vec<Endpoint> = texts
        .iter()
        .filter_map(|text| {
            check(Some(text), &format!("{path}backend"), problems, static_list::parse)
        })
        .collect();
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    for backend in &backends {
        if !names.insert(&backend.name) {
            problems.push(format!("{path}backend: the name `{}` is given twice", backend.name));
        }
        if !addresses.insert(&backend.address) {
            problems
                .push(format!("{path}backend: the address `{}` is given twice", backend.address));
        }
    }
    backends
}
