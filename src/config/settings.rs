//! The settings as they are written: flags, environment and file.

use std::{
    io::{self, Read as _},
    path::Path,
    str::FromStr as _,
};

use serde::Serialize;

use super::{
    pool::PoolSettings,
    value::{boolean, list, table, text},
};
use crate::regular_file;

/// A longer file is none of ours: a thousand pools fit.
const MAX_FILE_LEN: u64 = 1 << 20;

/// The settings as they are written: in the file, or as flags (see `cli`).
#[derive(Debug, Default, Clone, Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// Those of the only pool, or of all pools.
    #[command(flatten)]
    #[serde(flatten)]
    pub pool: PoolSettings,
    /// DNS server that is asked for --discover dns://NAME [default: those of /etc/resolv.conf].
    #[arg(
        help_heading = "Daemons",
        long,
        env = "BUILDKIT_LB_DNS_SERVER",
        value_name = "HOST:PORT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_server: Option<String>,
    /// Read the labels of the daemons' pods, which name their version, architecture and zone. Needs the
    /// verbs get, list and watch on pods [default: false].
    #[arg(help_heading = "Kubernetes pods", long, env = "BUILDKIT_LB_POD_DETAILS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_details: Option<bool>,
    /// Write the number of a pod's builds into its annotation controller.kubernetes.io/pod-deletion-cost.
    /// A Deployment that shrinks then ends idle pods first. Needs the verb patch on pods [default: false].
    #[arg(help_heading = "Kubernetes pods", long, env = "BUILDKIT_LB_POD_DELETION_COST", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_deletion_cost: Option<bool>,
    /// Set a pod's annotation cluster-autoscaler.kubernetes.io/safe-to-evict to false while the pod has
    /// builds, and to true otherwise. Needs the verb patch on pods [default: false].
    #[arg(help_heading = "Kubernetes pods", long, env = "BUILDKIT_LB_SAFE_TO_EVICT", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_to_evict: Option<bool>,
    /// Address of the admin port, which serves probes, metrics and status [default: 0.0.0.0:9090].
    #[arg(
        help_heading = "Admin port",
        long,
        env = "BUILDKIT_LB_ADMIN_LISTEN",
        value_name = "HOST:PORT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<String>,
    /// Address of a listener that takes drain and cordon requests without a token: unix:///PATH, which only
    /// the proxy's own user can open, or tcp://127.0.0.1:PORT, which everybody on the machine can
    /// [default: none].
    #[arg(
        help_heading = "Admin port",
        long,
        env = "BUILDKIT_LB_CONTROL_LISTEN",
        value_name = "ADDR"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_listen: Option<String>,
    /// File of tokens, one in each line. A request that shows one of them may drain and cordon on the admin
    /// port. The file is read again when it changes [default: none].
    #[arg(
        help_heading = "Admin port",
        long,
        env = "BUILDKIT_LB_ADMIN_TOKEN_FILE",
        value_name = "FILE"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_token_file: Option<String>,
    /// Directory with the certificates for TLS on the admin port; names as in --tls-dir. If the directory has a
    /// ca.crt, clients may show a certificate [default: none, clients connect without TLS].
    #[arg(
        help_heading = "Admin port",
        long,
        env = "BUILDKIT_LB_ADMIN_TLS_DIR",
        value_name = "DIR"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_tls_dir: Option<String>,
    /// Name of a client that may drain and cordon on the admin port, as its certificate has it; * stands for any
    /// characters. Repeatable [default: none].
    #[arg(
        help_heading = "Admin port",
        long,
        env = "BUILDKIT_LB_ADMIN_CLIENT",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub admin_client: Vec<String>,
    /// Answer requests for metrics and status on the admin port only to clients that show a token or a
    /// certificate. Probes need neither [default: false].
    #[arg(help_heading = "Admin port", long, env = "BUILDKIT_LB_ADMIN_RESTRICT_READING", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_restrict_reading: Option<bool>,
    /// Address of the port on which KEDA asks how many builds there are [default: none].
    #[arg(
        help_heading = "Scaling",
        long,
        env = "BUILDKIT_LB_SCALER_LISTEN",
        value_name = "HOST:PORT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaler_listen: Option<String>,
    /// Directory with the certificates for TLS on that port; names as in --tls-dir. If it has a ca.crt, KEDA must
    /// show a certificate [default: none, KEDA connects without TLS].
    #[arg(help_heading = "Scaling", long, env = "BUILDKIT_LB_SCALER_TLS_DIR", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaler_tls_dir: Option<String>,
    /// How long the proxy still accepts connections after SIGTERM. /readyz answers 503 during this time, so
    /// load balancers notice before a connection is refused [default: 0s].
    #[arg(
        help_heading = "Shutdown",
        long,
        env = "BUILDKIT_LB_DRAIN_DELAY",
        value_name = "DURATION"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_delay: Option<String>,
    /// How long the proxy waits for running builds after SIGTERM and the drain delay, for example 30s, 10m
    /// or 1h [default: 1h].
    #[arg(
        help_heading = "Shutdown",
        long,
        env = "BUILDKIT_LB_DRAIN_TIMEOUT",
        value_name = "DURATION"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<String>,
    /// Most client connections at once, over all listeners; a limit of open files that allows fewer wins
    /// [default: as many as the limit of open files allows].
    #[arg(
        help_heading = "Resources",
        long,
        env = "BUILDKIT_LB_MAX_CONNECTIONS",
        value_name = "COUNT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<String>,
    /// Memory for data that waits to be sent on: metadata, first messages, calls that wait for their build.
    /// For example 64MiB or 1GiB [default: a quarter of what the process may use, from 64MiB to 1GiB].
    #[arg(
        help_heading = "Resources",
        long,
        env = "BUILDKIT_LB_MEMORY_BUDGET",
        value_name = "SIZE"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_budget: Option<String>,
    /// Threads that relay data [default: half the processors].
    #[arg(
        help_heading = "Resources",
        long,
        env = "BUILDKIT_LB_WORKER_THREADS",
        value_name = "COUNT"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_threads: Option<String>,
    /// Format of the log on standard error: text or json [default: text].
    #[arg(help_heading = "Log", long, env = "BUILDKIT_LB_LOG_FORMAT", value_name = "FORMAT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<String>,
    /// Lowest level that is logged: error, warn, info, debug or trace; trace includes the libraries, down to
    /// HTTP/2 frames [default: info].
    #[arg(help_heading = "Log", long, env = "BUILDKIT_LB_LOG_LEVEL", value_name = "LEVEL")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_level: Option<String>,
    /// The `[[identity]]` tables of the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<toml::Value>,
    /// The `[[access]]` tables of the file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<toml::Value>,
    /// The `[[pool]]` tables of the file.
    #[arg(skip)]
    #[serde(rename = "pool", skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolSettings>,
}

impl Settings {
    /// These settings where `over` has none.
    pub(super) fn under(self, over: Self) -> Self {
        Self {
            pool: self.pool.under(over.pool),
            dns_server: over.dns_server.or(self.dns_server),
            pod_details: over.pod_details.or(self.pod_details),
            pod_deletion_cost: over.pod_deletion_cost.or(self.pod_deletion_cost),
            safe_to_evict: over.safe_to_evict.or(self.safe_to_evict),
            admin_listen: over.admin_listen.or(self.admin_listen),
            control_listen: over.control_listen.or(self.control_listen),
            admin_token_file: over.admin_token_file.or(self.admin_token_file),
            admin_tls_dir: over.admin_tls_dir.or(self.admin_tls_dir),
            admin_client: if over.admin_client.is_empty() {
                self.admin_client
            } else {
                over.admin_client
            },
            admin_restrict_reading: over.admin_restrict_reading.or(self.admin_restrict_reading),
            scaler_listen: over.scaler_listen.or(self.scaler_listen),
            scaler_tls_dir: over.scaler_tls_dir.or(self.scaler_tls_dir),
            drain_delay: over.drain_delay.or(self.drain_delay),
            drain_timeout: over.drain_timeout.or(self.drain_timeout),
            max_connections: over.max_connections.or(self.max_connections),
            memory_budget: over.memory_budget.or(self.memory_budget),
            worker_threads: over.worker_threads.or(self.worker_threads),
            log_format: over.log_format.or(self.log_format),
            log_level: over.log_level.or(self.log_level),
            identity: over.identity.or(self.identity),
            access: over.access.or(self.access),
            pools: self.pools,
        }
    }

    pub(super) fn read(file: &Path, problems: &mut Vec<String>) -> Self {
        let text = match read_bounded(file) {
            Ok(text) => text,
            Err(error) => {
                problems.push(format!("config: cannot read `{}`: {error}", file.display()));
                return Self::default();
            }
        };
        match toml::Table::from_str(&text) {
            Ok(table) => Self::from_table(table, problems),
            Err(error) => {
                let start = error.span().map_or(0, |span| span.start);
                let line = 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
                let (file, cause) = (file.display(), error.message());
                problems.push(format!("config: `{file}` is not TOML: line {line}: {cause}"));
                Self::default()
            }
        }
    }

    /// Key by key, so that one wrong value does not hide the next.
    fn from_table(entries: toml::Table, problems: &mut Vec<String>) -> Self {
        let mut settings = Self::default();
        for (key, value) in entries {
            match key.as_str() {
                "dns-server" => settings.dns_server = text(&key, value, problems),
                "pod-details" => settings.pod_details = boolean(&key, &value, problems),
                "pod-deletion-cost" => settings.pod_deletion_cost = boolean(&key, &value, problems),
                "safe-to-evict" => settings.safe_to_evict = boolean(&key, &value, problems),
                "admin-listen" => settings.admin_listen = text(&key, value, problems),
                "control-listen" => settings.control_listen = text(&key, value, problems),
                "admin-token-file" => settings.admin_token_file = text(&key, value, problems),
                "admin-tls-dir" => settings.admin_tls_dir = text(&key, value, problems),
                "admin-client" => settings.admin_client = list(&key, value, problems),
                "admin-restrict-reading" => {
                    settings.admin_restrict_reading = boolean(&key, &value, problems);
                }
                "scaler-listen" => settings.scaler_listen = text(&key, value, problems),
                "scaler-tls-dir" => settings.scaler_tls_dir = text(&key, value, problems),
                "drain-delay" => settings.drain_delay = text(&key, value, problems),
                "drain-timeout" => settings.drain_timeout = text(&key, value, problems),
                "max-connections" => settings.max_connections = text(&key, value, problems),
                "memory-budget" => settings.memory_budget = text(&key, value, problems),
                "worker-threads" => settings.worker_threads = text(&key, value, problems),
                "log-format" => settings.log_format = text(&key, value, problems),
                "log-level" => settings.log_level = text(&key, value, problems),
                "identity" => settings.identity = Some(value),
                "access" => settings.access = Some(value),
                "pool" => settings.pools = pools(value, problems),
                _ => {
                    if settings.pool.set(&key, &key, value, problems).is_some() {
                        problems.push(format!("{key}: unknown key"));
                    }
                }
            }
        }
        settings
    }
}

fn read_bounded(file: &Path) -> io::Result<String> {
    let Some(mut opened) = regular_file::open(file, MAX_FILE_LEN)? else {
        return Err(io::Error::other("it is not a regular file"));
    };
    let mut text = String::new();
    let read = opened.read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE_LEN) {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

/// `[[pool]]`: a list of tables.
fn pools(value: toml::Value, problems: &mut Vec<String>) -> Vec<PoolSettings> {
    let toml::Value::Array(pools) = value else {
        problems.push("pool: must be a list of tables, as [[pool]]".to_owned());
        return Vec::new();
    };
    let mut read = |(index, value)| {
        let path = format!("pool[{index}]");
        let table = table(&path, value, problems)?;
        Some(PoolSettings::from_table(&path, table, problems))
    };
    pools.into_iter().enumerate().filter_map(&mut read).collect()
}
