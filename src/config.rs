//! Configuration: flags over environment over file over defaults, parsed once into checked types.
//!
//! The only reader of the file and the environment. Every problem is found in one run, each with the
//! key it is about.

mod admin;
mod pool;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod value;

use std::{
    collections::HashSet,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use self::value::{
    check, one_line, parse_budget, parse_choice, parse_control, parse_count, parse_duration,
    parse_host_port,
};
pub use self::{
    admin::AdminAccess,
    pool::{Pool, PoolSettings},
    settings::Settings,
    tls::{Tls, TlsSettings},
};
use crate::{
    access,
    account::default_budget,
    address::{Address, HostPort},
    annotations, identity,
    metrics::DEFAULT_POOL,
    telemetry::{LogFormat, LogLevel},
    token::Tokens,
};

/// Read if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/buildkit-lb/buildkit-lb.toml";

/// Where Prometheus and the kubelet look.
const DEFAULT_ADMIN_LISTEN: &str = "0.0.0.0:9090";

/// As long as a long build; Kubernetes' terminationGracePeriodSeconds must be above it.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);

/// The checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The pools; at least one.
    pub pools: Vec<Pool>,
    /// Which name of a client's certificate says who it is.
    pub identities: identity::Rules,
    /// What clients may do.
    pub access: access::Rules,
    /// Whom to ask for names to discover, rather than the system's servers.
    pub dns_server: Option<HostPort>,
    /// What is asked and told of pods.
    pub pods: Pods,
    /// Where probes and Prometheus connect.
    pub admin_listen: HostPort,
    /// Where things may be changed without a token, if anywhere.
    pub control_listen: Option<Address>,
    /// The tokens with which things may be changed on the admin port, if any.
    pub admin_token_file: Option<PathBuf>,
    /// TLS on the admin port, and who may do what there by a certificate.
    pub admin_access: AdminAccess,
    /// Where KEDA asks how many builds there are, if anywhere.
    pub scaler_listen: Option<HostPort>,
    /// Where the certificates for that are, if it speaks TLS.
    pub scaler_tls_dir: Option<PathBuf>,
    /// How long a proxy that was told to end goes on accepting.
    pub drain_delay: Duration,
    /// How long a drain waits for builds before it cuts them.
    pub drain_timeout: Duration,
    /// Client connections at once, over all listeners; else as many as there are descriptors for.
    pub max_connections: Option<usize>,
    /// Bytes that may wait to be sent on.
    pub memory_budget: u64,
    /// Threads that relay.
    pub worker_threads: usize,
    /// Shape of a log line.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: LogLevel,
}

/// What is asked and told of the daemons' pods, beyond finding them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pods {
    /// Whether their labels are read.
    pub details: bool,
    /// What they are told of their builds.
    pub annotations: annotations::Config,
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
        let problems: Vec<_> = problems.iter().map(|problem| one_line(problem)).collect();
        config.filter(|_| problems.is_empty()).ok_or(Problems(problems))
    }

    fn check(settings: &Settings, problems: &mut Vec<String>) -> Option<Self> {
        let pools = check_pools(settings, problems);
        let identities = settings.identity.clone().map_or_else(identity::Rules::default, |value| {
            identity::Rules::from_value(value, "identity", problems)
        });
        let access = check_access(settings.access.clone(), &pools, problems);
        let dns_server =
            check(settings.dns_server.as_deref(), "dns-server", problems, parse_host_port);
        let admin = settings.admin_listen.as_deref().or(Some(DEFAULT_ADMIN_LISTEN));
        let admin_listen = check(admin, "admin-listen", problems, parse_host_port);
        let control_listen =
            check(settings.control_listen.as_deref(), "control-listen", problems, parse_control);
        let admin_token_file =
            check(settings.admin_token_file.as_deref(), "admin-token-file", problems, |path| {
                let path = PathBuf::from(path);
                Tokens::read(&path).map(|_tokens| path).map_err(|error| error.to_string())
            });
        let admin_access = AdminAccess::check(settings, problems);
        let scaler = settings.scaler_listen.as_deref();
        let scaler_listen = check(scaler, "scaler-listen", problems, parse_host_port);
        let scaler_tls_dir =
            check(settings.scaler_tls_dir.as_deref(), "scaler-tls-dir", problems, |path| {
                let path = PathBuf::from(path);
                let server = crate::tls::Server::for_scaler(&path);
                server.map(|_server| path).map_err(|error| error.to_string())
            });
        let drain_delay =
            check(settings.drain_delay.as_deref(), "drain-delay", problems, parse_duration);
        let drain_timeout =
            check(settings.drain_timeout.as_deref(), "drain-timeout", problems, parse_duration);
        let max_connections =
            check(settings.max_connections.as_deref(), "max-connections", problems, |text| {
                parse_count(text, 1_000_000)
            });
        let memory_budget =
            check(settings.memory_budget.as_deref(), "memory-budget", problems, parse_budget);
        let worker_threads =
            check(settings.worker_threads.as_deref(), "worker-threads", problems, |text| {
                parse_count(text, 1024)
            });
        let log_format = check(settings.log_format.as_deref(), "log-format", problems, |text| {
            parse_choice(text, "text or json")
        });
        let log_level = check(settings.log_level.as_deref(), "log-level", problems, |text| {
            parse_choice(text, "error, warn, info, debug or trace")
        });
        let admin_listen = admin_listen?;
        for address in pools.iter().flat_map(|pool| &pool.listen) {
            let Address::Tcp { host, port } = address else { continue };
            let ip = |host: &str| host.parse::<IpAddr>().ok();
            let same = *host == admin_listen.host
                || ip(host).is_some_and(|host| Some(host) == ip(&admin_listen.host));
            if *port != 0 && *port == admin_listen.port && same {
                problems.push(format!(
                    "admin-listen: `{admin_listen}` is also in listen, the two need their own ports"
                ));
            }
        }
        Some(Self {
            pools,
            identities,
            access,
            dns_server,
            pods: Pods {
                details: settings.pod_details.unwrap_or_default(),
                annotations: annotations::Config {
                    deletion_cost: settings.pod_deletion_cost.unwrap_or_default(),
                    safe_to_evict: settings.safe_to_evict.unwrap_or_default(),
                },
            },
            admin_listen,
            control_listen,
            admin_token_file,
            admin_access,
            scaler_listen,
            scaler_tls_dir,
            drain_delay: drain_delay.unwrap_or_default(),
            drain_timeout: drain_timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT),
            max_connections,
            memory_budget: memory_budget.unwrap_or_else(default_budget),
            worker_threads: worker_threads.unwrap_or_else(default_worker_threads),
            log_format: log_format.unwrap_or_default(),
            log_level: log_level.unwrap_or_default(),
        })
    }

    /// The configuration as a file that gives the same one.
    pub fn to_toml(&self) -> String {
        let (pool, pools) = match self.pools.as_slice() {
            [only] if only.name == DEFAULT_POOL => (only.settings(None), Vec::new()),
            pools => {
                let named = |pool: &Pool| pool.settings(Some(pool.name.clone()));
                (PoolSettings::default(), pools.iter().map(named).collect())
            }
        };
        let settings = Settings {
            pool,
            identity: (self.identities != identity::Rules::default())
                .then(|| self.identities.to_value()),
            access: self.access.to_value(),
            dns_server: self.dns_server.as_ref().map(ToString::to_string),
            pod_details: Some(self.pods.details),
            pod_deletion_cost: Some(self.pods.annotations.deletion_cost),
            safe_to_evict: Some(self.pods.annotations.safe_to_evict),
            admin_listen: Some(self.admin_listen.to_string()),
            control_listen: self.control_listen.as_ref().map(ToString::to_string),
            admin_token_file: self.admin_token_file.as_ref().map(|file| file.display().to_string()),
            admin_tls_dir: self.admin_access.tls_dir.as_ref().map(|dir| dir.display().to_string()),
            admin_client: self
                .admin_access
                .clients
                .iter()
                .map(|client| client.text().to_owned())
                .collect(),
            admin_restrict_reading: Some(self.admin_access.restrict_reading),
            scaler_listen: self.scaler_listen.as_ref().map(ToString::to_string),
            scaler_tls_dir: self.scaler_tls_dir.as_ref().map(|path| path.display().to_string()),
            drain_delay: Some(humantime::format_duration(self.drain_delay).to_string()),
            drain_timeout: Some(humantime::format_duration(self.drain_timeout).to_string()),
            max_connections: self.max_connections.map(|count| count.to_string()),
            memory_budget: Some(self.memory_budget.to_string()),
            worker_threads: Some(self.worker_threads.to_string()),
            log_format: Some(self.log_format.to_string()),
            log_level: Some(self.log_level.to_string()),
            pools,
        };
        // Strings and lists of strings always have a TOML form.
        toml::to_string(&settings).unwrap_or_default()
    }
}

fn check_access(
    value: Option<toml::Value>,
    pools: &[Pool],
    problems: &mut Vec<String>,
) -> access::Rules {
    let Some(value) = value else { return access::Rules::default() };
    let rules = access::Rules::from_value(value, "access", problems);
    let known = |name: &str| name.contains('*') || pools.iter().any(|pool| pool.name == name);
    for name in rules.pools().filter(|name| !known(name)) {
        problems.push(format!("access: there is no pool `{name}`"));
    }
    rules
}

fn check_pools(settings: &Settings, problems: &mut Vec<String>) -> Vec<Pool> {
    if settings.pools.is_empty() {
        return vec![Pool::only(&settings.pool, problems)];
    }
    Pool::check_common(&settings.pool, problems);
    let mut pools: Vec<Pool> = Vec::with_capacity(settings.pools.len());
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for (index, own) in settings.pools.iter().enumerate() {
        let path = format!("pool[{index}]");
        let pool = Pool::named(&path, own, &settings.pool, problems);
        if !names.insert(pool.name.clone()) {
            problems.push(format!("{path}.name: `{}` is given twice", pool.name));
        }
        for address in &pool.listen {
            let any_port = matches!(address, Address::Tcp { port: 0, .. });
            if !any_port && !addresses.insert(address.clone()) {
                problems.push(format!("{path}.listen: `{address}` is given twice"));
            }
        }
        pools.push(pool);
    }
    pools
}

/// Half the processors: the streams of one build wake each other all the time, which costs nothing
/// on one thread and a system call across threads.
fn default_worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    processors.div_ceil(2)
}
