//! Configuration: flags over environment over file over defaults, parsed once into checked types.
//!
//! The only reader of the file and the environment. Every problem is found in one run, each with the
//! key it is about.

use std::{
    collections::HashSet,
    fmt,
    net::{SocketAddr, ToSocketAddrs as _},
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    address::Address,
    affinity::Rules,
    discovery::{Target, static_list},
    fleet::Endpoint,
    policy::{self, LoadFactor, warm},
    telemetry::{LogFormat, LogLevel},
};

/// Read if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/buildkit-lb/buildkit-lb.toml";

/// BuildKit's usual port.
const DEFAULT_LISTEN: &str = "tcp://0.0.0.0:1234";

/// Where Prometheus and the kubelet look.
const DEFAULT_ADMIN_LISTEN: &str = "0.0.0.0:9090";

/// As long as a long build; Kubernetes' terminationGracePeriodSeconds must be above it.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);

/// Client connections at once: each build holds two descriptors.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// The checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Vec<Address>,
    /// The daemons.
    pub backends: Vec<Endpoint>,
    /// Where more daemons are found.
    pub discover: Vec<Target>,
    /// Whom to ask for names to discover, rather than the system's servers.
    pub dns_server: Option<SocketAddr>,
    /// How builds are spread.
    pub policy: policy::Config,
    /// What makes a build's affinity key.
    pub affinity: Rules,
    /// Where probes and Prometheus connect.
    pub admin_listen: SocketAddr,
    /// How long a drain waits for builds before it cuts them.
    pub drain_timeout: Duration,
    /// Client connections at once, over all listeners.
    pub max_connections: usize,
    /// Threads that relay.
    pub worker_threads: usize,
    /// Shape of a log line.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogLevel,
}

/// The settings as they are written: in the file, or as flags (see `cli`).
#[derive(Debug, Default, Clone, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// Address to listen on for clients: tcp://HOST:PORT, HOST:PORT or unix:///PATH. Repeatable.
    #[arg(long, env = "BUILDKIT_LB_LISTEN", value_delimiter = ',', value_name = "ADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<String>,
    /// A buildkitd: [NAME=]tcp://HOST:PORT or [NAME=]unix:///PATH, with ?capacity=N if it takes more
    /// builds than others. Repeatable.
    #[arg(long, env = "BUILDKIT_LB_BACKEND", value_delimiter = ',', value_name = "[NAME=]ADDR")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend: Vec<String>,
    /// Where daemons are found: kubernetes://NAMESPACE/SERVICE (and :PORT), dns://NAME:PORT or
    /// dns://_SERVICE._tcp.NAME. Repeatable, beside --backend.
    #[arg(long, env = "BUILDKIT_LB_DISCOVER", value_delimiter = ',', value_name = "URL")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub discover: Vec<String>,
    /// DNS server for --discover dns://… [default: those of /etc/resolv.conf].
    #[arg(long, env = "BUILDKIT_LB_DNS_SERVER", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_server: Option<String>,
    /// How builds are spread: random, least-sessions or consistent-hash [default: consistent-hash].
    #[arg(long, env = "BUILDKIT_LB_POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Let the targets of one bake go to different backends; a bake with linked targets fails then
    /// [default: false].
    #[arg(long, env = "BUILDKIT_LB_SPREAD_BAKE_TARGETS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread_bake_targets: Option<bool>,
    /// How long a backend that joins a running fleet is given less than its share of the builds; 0s is
    /// no slow start [default: 30s].
    #[arg(long, env = "BUILDKIT_LB_SLOW_START", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<String>,
    /// Address of the admin port: /livez, /readyz, /metrics, /status.json [default: 0.0.0.0:9090].
    #[arg(long, env = "BUILDKIT_LB_ADMIN_LISTEN", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<String>,
    /// How long to wait for running builds after SIGTERM, as in 30s, 10m or 1h [default: 1h].
    #[arg(long, env = "BUILDKIT_LB_DRAIN_TIMEOUT", value_name = "DURATION")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,
    /// Client connections at once [default: 10000].
    #[arg(long, env = "BUILDKIT_LB_MAX_CONNECTIONS", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<String>,
    /// Threads that relay [default: half the processors].
    #[arg(long, env = "BUILDKIT_LB_WORKER_THREADS", value_name = "COUNT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_threads: Option<String>,
    /// Shape of log lines: text or json [default: text].
    #[arg(long, env = "BUILDKIT_LB_LOG_FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
    /// What is logged: error, warn, info, debug or trace [default: info].
    #[arg(long, env = "BUILDKIT_LB_LOG_LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
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

/// All that is wrong with a configuration; one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Reads the file (`file`, or [`DEFAULT_FILE`] if there is one), puts `flags` over it and checks
    /// the result.
    ///
    /// # Errors
    /// Every problem of file and flags.
    pub fn load(file: Option<&Path>, flags: Settings) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let file = match file {
            Some(file) => Some(file.to_owned()),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()),
        };
        let settings = match file {
            Some(file) => Settings::read(&file, &mut problems).under(flags),
            None => flags,
        };
        let config = Self::check(&settings, &mut problems);
        config.filter(|_| problems.is_empty()).ok_or(Problems(problems))
    }

    fn check(settings: &Settings, problems: &mut Vec<String>) -> Option<Self> {
        let listen = check_listen(&settings.listen, problems);
        let backends = check_backends(&settings.backend, problems);
        let discover = check_discover(&settings.discover, problems);
        let dns_server =
            check(settings.dns_server.as_deref(), "dns-server", problems, parse_socket_addr);
        if settings.backend.is_empty() && settings.discover.is_empty() {
            problems.push(
                "backend: at least one is needed, as [NAME=]tcp://HOST:PORT, or discover"
                    .to_owned(),
            );
        }
        let policy = check_policy(settings, problems);
        let admin = settings.admin_listen.as_deref().or(Some(DEFAULT_ADMIN_LISTEN));
        let admin_listen = check(admin, "admin-listen", problems, parse_socket_addr);
        let drain_timeout =
            check(settings.drain_timeout.as_deref(), "drain-timeout", problems, parse_duration);
        let max_connections =
            check(settings.max_connections.as_deref(), "max-connections", problems, |text| {
                parse_count(text, 1_000_000)
            });
        let worker_threads =
            check(settings.worker_threads.as_deref(), "worker-threads", problems, |text| {
                parse_count(text, 1024)
            });
        let log_format = check(settings.log_format.as_deref(), "log-format", problems, |text| {
            parse_word(text, "text or json")
        });
        let log_level = check(settings.log_level.as_deref(), "log-level", problems, |text| {
            parse_word(text, "error, warn, info, debug or trace")
        });
        let affinity = match &settings.affinity {
            Some(table) => Rules::from_table(table.clone(), "affinity", problems),
            None => Rules::default(),
        };
        let admin_listen = admin_listen?;
        for address in &listen {
            let Address::Tcp { host, port } = address else { continue };
            let ip = host.parse().ok();
            let same = ip == Some(admin_listen.ip());
            if *port != 0 && *port == admin_listen.port() && same {
                problems.push(format!(
                    "admin-listen: `{admin_listen}` is also in listen, the two need their own ports"
                ));
            }
        }
        Some(Self {
            listen,
            backends,
            discover,
            dns_server,
            policy,
            affinity,
            admin_listen,
            drain_timeout: drain_timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT),
            max_connections: max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
            worker_threads: worker_threads.unwrap_or_else(default_worker_threads),
            log_format: log_format.unwrap_or_default(),
            log_level: log_level.unwrap_or_default(),
        })
    }

    /// The configuration as a file that gives the same one.
    pub fn to_toml(&self) -> String {
        let settings = Settings {
            listen: self.listen.iter().map(ToString::to_string).collect(),
            backend: self.backends.iter().map(static_list::text).collect(),
            dns_server: self.dns_server.map(|server| server.to_string()),
            discover: self.discover.iter().map(ToString::to_string).collect(),
            policy: Some(self.policy.policy.to_string()),
            spread_bake_targets: Some(self.policy.spread_bake_targets),
            slow_start: Some(humantime::format_duration(self.policy.slow_start).to_string()),
            admin_listen: Some(self.admin_listen.to_string()),
            drain_timeout: Some(humantime::format_duration(self.drain_timeout).to_string()),
            max_connections: Some(self.max_connections.to_string()),
            worker_threads: Some(self.worker_threads.to_string()),
            log_format: Some(self.log_format.to_string()),
            log_level: Some(self.log_level.to_string()),
            affinity: Some(self.affinity.to_table()),
            consistent_hash: Some(toml::Table::from_iter([(
                "load-factor".to_owned(),
                self.policy.load_factor.to_string().into(),
            )])),
            warm_memory: Some(warm_table(&self.policy.warm)),
        };
        // Strings and lists of strings always have a TOML form.
        toml::to_string(&settings).unwrap_or_default()
    }
}

impl Settings {
    /// These settings where `over` has none.
    fn under(self, over: Self) -> Self {
        let list = |over: Vec<_>, under| if over.is_empty() { under } else { over };
        Self {
            listen: list(over.listen, self.listen),
            backend: list(over.backend, self.backend),
            discover: list(over.discover, self.discover),
            dns_server: over.dns_server.or(self.dns_server),
            policy: over.policy.or(self.policy),
            spread_bake_targets: over.spread_bake_targets.or(self.spread_bake_targets),
            slow_start: over.slow_start.or(self.slow_start),
            admin_listen: over.admin_listen.or(self.admin_listen),
            drain_timeout: over.drain_timeout.or(self.drain_timeout),
            max_connections: over.max_connections.or(self.max_connections),
            worker_threads: over.worker_threads.or(self.worker_threads),
            log_format: over.log_format.or(self.log_format),
            log_level: over.log_level.or(self.log_level),
            affinity: over.affinity.or(self.affinity),
            consistent_hash: over.consistent_hash.or(self.consistent_hash),
            warm_memory: over.warm_memory.or(self.warm_memory),
        }
    }

    fn read(file: &Path, problems: &mut Vec<String>) -> Self {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) => {
                problems.push(format!("config: cannot read `{}`: {error}", file.display()));
                return Self::default();
            }
        };
        match toml::Table::from_str(&text) {
            Ok(table) => Self::from_table(table, problems),
            Err(error) => {
                problems.push(format!("config: `{}` is not TOML: {error}", file.display()));
                Self::default()
            }
        }
    }

    /// Key by key, so that one wrong value does not hide the next.
    fn from_table(entries: toml::Table, problems: &mut Vec<String>) -> Self {
        let mut settings = Self::default();
        for (key, value) in entries {
            match key.as_str() {
                "listen" => settings.listen = list(&key, value, problems),
                "backend" => settings.backend = list(&key, value, problems),
                "discover" => settings.discover = list(&key, value, problems),
                "dns-server" => settings.dns_server = text(&key, value, problems),
                "policy" => settings.policy = text(&key, value, problems),
                "spread-bake-targets" => {
                    settings.spread_bake_targets = truth(&key, &value, problems);
                }
                "slow-start" => settings.slow_start = text(&key, value, problems),
                "admin-listen" => settings.admin_listen = text(&key, value, problems),
                "drain-timeout" => settings.drain_timeout = text(&key, value, problems),
                "max-connections" => settings.max_connections = text(&key, value, problems),
                "worker-threads" => settings.worker_threads = text(&key, value, problems),
                "log-format" => settings.log_format = text(&key, value, problems),
                "log-level" => settings.log_level = text(&key, value, problems),
                "affinity" => settings.affinity = table(&key, value, problems),
                "consistent-hash" => settings.consistent_hash = table(&key, value, problems),
                "warm-memory" => settings.warm_memory = table(&key, value, problems),
                _ => problems.push(format!("{key}: unknown key")),
            }
        }
        settings
    }
}

/// A string or a list of strings.
fn list(key: &str, value: toml::Value, problems: &mut Vec<String>) -> Vec<String> {
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
fn text(key: &str, value: toml::Value, problems: &mut Vec<String>) -> Option<String> {
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

fn truth(key: &str, value: &toml::Value, problems: &mut Vec<String>) -> Option<bool> {
    let truth = value.as_bool();
    if truth.is_none() {
        problems.push(format!("{key}: must be true or false"));
    }
    truth
}

fn table(key: &str, value: toml::Value, problems: &mut Vec<String>) -> Option<toml::Table> {
    match value {
        toml::Value::Table(table) => Some(table),
        other => {
            problems.push(format!("{key}: must be a table, found {}", other.type_str()));
            None
        }
    }
}

/// Parses a setting if it is there, and names it in the problem if that fails.
fn check<T>(
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

fn check_policy(settings: &Settings, problems: &mut Vec<String>) -> policy::Config {
    let default = policy::Config::default();
    let policy = check(settings.policy.as_deref(), "policy", problems, |text| {
        parse_word(text, "random, least-sessions or consistent-hash")
    });
    let slow_start = check(settings.slow_start.as_deref(), "slow-start", problems, parse_duration);
    let mut load_factor: Option<LoadFactor> = None;
    for (key, value) in settings.consistent_hash.clone().unwrap_or_default() {
        let path = format!("consistent-hash.{key}");
        match key.as_str() {
            "load-factor" => {
                let text = text(&path, value, problems);
                load_factor = check(text.as_deref(), &path, problems, str::parse);
            }
            _ => problems.push(format!("{path}: unknown key")),
        }
    }
    policy::Config {
        policy: policy.unwrap_or(default.policy),
        load_factor: load_factor.unwrap_or(default.load_factor),
        slow_start: slow_start.unwrap_or(default.slow_start),
        spread_bake_targets: settings.spread_bake_targets.unwrap_or_default(),
        warm: check_warm(settings.warm_memory.clone().unwrap_or_default(), problems),
    }
}

fn check_warm(table: toml::Table, problems: &mut Vec<String>) -> warm::Config {
    let mut warm = warm::Config::default();
    for (key, value) in table {
        let path = format!("warm-memory.{key}");
        match key.as_str() {
            "enabled" => warm.enabled = truth(&path, &value, problems).unwrap_or(warm.enabled),
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

fn check_listen(texts: &[String], problems: &mut Vec<String>) -> Vec<Address> {
    let default = [DEFAULT_LISTEN.to_owned()];
    let texts = if texts.is_empty() { &default } else { texts };
    let parse = |text: &str| text.parse::<Address>().map_err(|error| error.to_string());
    texts.iter().filter_map(|text| check(Some(text), "listen", problems, parse)).collect()
}

fn check_discover(texts: &[String], problems: &mut Vec<String>) -> Vec<Target> {
    let targets: Vec<Target> = texts
        .iter()
        .filter_map(|text| check(Some(text), "discover", problems, str::parse))
        .collect();
    let mut seen = HashSet::new();
    for target in targets.iter().filter(|target| !seen.insert(*target)) {
        problems.push(format!("discover: `{target}` is given twice"));
    }
    targets
}

fn check_backends(texts: &[String], problems: &mut Vec<String>) -> Vec<Endpoint> {
    let backends: Vec<Endpoint> = texts
        .iter()
        .filter_map(|text| check(Some(text), "backend", problems, static_list::parse))
        .collect();
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    for backend in &backends {
        if !names.insert(&backend.name) {
            problems.push(format!("backend: the name `{}` is given twice", backend.name));
        }
        if !addresses.insert(&backend.address) {
            problems.push(format!("backend: the address `{}` is given twice", backend.address));
        }
    }
    backends
}

fn parse_socket_addr(text: &str) -> Result<SocketAddr, String> {
    let text = text.strip_prefix("tcp://").unwrap_or(text);
    text.to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| format!("`{text}` is not a HOST:PORT of this machine"))
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration such as 30s, 10m or 1h: {error}"))
}

fn parse_count(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=most).contains(&count) => Ok(count),
        _ => Err(format!("`{text}` is not a number from 1 to {most}")),
    }
}

/// Half the processors: the streams of one build wake each other all the time, which costs nothing
/// on one thread and a system call across threads.
fn default_worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.div_ceil(2)
}

fn parse_word<T: DeserializeOwned>(text: &str, words: &str) -> Result<T, String> {
    T::deserialize(toml::Value::String(text.to_owned()))
        .map_err(|_unknown| format!("`{text}` is not one of {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn load(file: &str, flags: Settings) -> Result<Config, Problems> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("buildkit-lb.toml");
        std::fs::write(&path, file).expect("written");
        Config::load(Some(&path), flags)
    }

    fn backend(text: &str) -> Settings {
        Settings { backend: vec![text.to_owned()], ..Settings::default() }
    }

    #[test]
    fn one_backend_is_all_it_needs() {
        let config = load("", backend("tcp://b:1234")).expect("valid");
        assert_eq!(config.policy.policy, Policy::ConsistentHash);
        assert_eq!(&*config.backends[0].name, "b:1234");
        assert_eq!(config.listen[0].to_string(), DEFAULT_LISTEN);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file =
            "policy = 'random'\nbackend = ['a=tcp://x:1', 'b=unix:///s']\nmax-connections = 7";
        let flags = Settings { policy: Some("least-sessions".into()), ..Settings::default() };
        let config = load(file, flags).expect("valid");
        assert_eq!(config.policy.policy, Policy::LeastSessions);
        assert_eq!((config.backends.len(), config.max_connections), (2, 7));
    }

    #[test]
    fn daemons_are_named_or_found() {
        let Problems(problems) = load("", Settings::default()).expect_err("invalid");
        assert!(problems[0].starts_with("backend: at least one"), "{problems:?}");
        let config = load("discover = 'kubernetes://b/s'", Settings::default()).expect("valid");
        assert_eq!(config.discover, ["kubernetes://b/s".parse().expect("valid")]);
        assert_eq!(load(&config.to_toml(), Settings::default()), Ok(config));
        let file = "discover = ['consul://x', 'kubernetes://b/s', 'kubernetes://b/s']";
        let Problems(problems) = load(file, Settings::default()).expect_err("invalid");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn every_problem_is_told_in_one_run() {
        let file = "polcy = 'x'\npolicy = 'best'\nlisten = 3\ndrain-timeout = 'soon'\n\
                    backend = ['tcp://a', 'a=tcp://x:1', 'a=tcp://x:1', 'c=tcp://x:2?capacity=0']\nmax-connections = 0\n\
                    admin-listen = 'nowhere'\nlog-level = true\nspread-bake-targets = 1\nslow-start = 'fast'\n\
                    consistent-hash = { load-factor = 0.8, bound = 2 }\n\
                    warm-memory = { enabled = 'yes', max-keys = 0, ttl = 'ever' }\n\
                    affinity = { sources = ['path'] }";
        let Problems(problems) = load(file, Settings::default()).expect_err("invalid");
        for key in [
            "polcy: unknown",
            "policy: `best`",
            "listen: must",
            "drain-timeout: `soon`",
            "backend: port is missing",
            "backend: the name `a`",
            "backend: the address",
            "max-connections: `0`",
            "admin-listen: `nowhere`",
            "log-level: must",
            "backend: `0` is not a number from 1 to 10000",
            "spread-bake-targets: must",
            "slow-start: `fast`",
            "consistent-hash.load-factor: `0.8`",
            "consistent-hash.bound: unknown",
            "warm-memory.enabled: must",
            "warm-memory.max-keys: `0`",
            "warm-memory.ttl: `ever`",
            "affinity.sources[0]: `path`",
        ] {
            assert!(
                problems.iter().any(|problem| problem.starts_with(key)),
                "{key}: {problems:#?}"
            );
        }
    }

    #[test]
    fn one_port_cannot_serve_both() {
        let flags = Settings { listen: vec!["0.0.0.0:9090".into()], ..backend("tcp://b:1") };
        let Problems(problems) = load("", flags).expect_err("invalid");
        assert_eq!(problems.len(), 1, "{problems:?}");
    }

    #[test]
    fn a_capacity_stands_behind_the_address() {
        for text in ["b:1?capacity=4", "n=tcp://b:1?capacity=4", "unix:///s?capacity=4"] {
            let config = load("", backend(text)).expect("valid");
            assert_eq!(config.backends[0].capacity.get(), 4, "{text}");
            assert!(!config.backends[0].name.contains('?'), "{text}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        let flags = Settings {
            drain_timeout: Some("90s".into()),
            slow_start: Some("0s".into()),
            spread_bake_targets: Some(true),
            ..backend("b=tcp://[::1]:1?capacity=3")
        };
        let file = "consistent-hash.load-factor = 'off'\n\
                    warm-memory = { enabled = false, max-keys = 5, ttl = '1h' }";
        let config = load(file, flags).expect("valid");
        assert_eq!(config.policy.load_factor, LoadFactor::OFF);
        assert!(!config.policy.warm.enabled);
        assert_eq!(load(&config.to_toml(), Settings::default()), Ok(config));
    }
}
