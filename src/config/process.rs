//! The settings of the process, which are about no single pool.

use std::thread;

use serde::{Deserialize, Serialize};

use super::{
    Pods,
    otlp::{self, Collector},
    value::{Budget, Count, FilePath, LocalAddress, Span, UpTo},
};
use crate::{
    account::default_budget,
    address::HostPort,
    annotations,
    telemetry::{LogFormat, LogLevel},
    tls,
    token::{AdminTokens, ClientTokens, TokenList as _},
    traces,
};

/// The settings of the process. A field is a key of the file, a flag and a variable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct Process {
    /// File of tokens by which clients without a certificate have a name: each line has the SHA-256 of a token, a space
    /// and a name. Calls show their token in `authorization`, over TLS only. The file is read again when it changes
    /// [default: none].
    #[arg(help_heading = "Clients", long, value_name = "FILE")]
    pub client_token_file: Option<FilePath>,
    /// DNS server for --discover dns://NAME [default: those of /etc/resolv.conf].
    #[arg(help_heading = "Daemons", long, value_name = "HOST:PORT")]
    pub dns_server: Option<HostPort>,
    /// Read the labels of the daemons' pods, which name their version, architecture and zone. Needs the verbs get, list
    /// and watch on pods.
    #[arg(help_heading = "Kubernetes pods", long)]
    pub pod_details: bool,
    /// Write the number of a pod's builds into its annotation controller.kubernetes.io/pod-deletion-cost. A Deployment
    /// that shrinks then ends idle pods first. Needs the verb patch on pods.
    #[arg(help_heading = "Kubernetes pods", long)]
    pub pod_deletion_cost: bool,
    /// Set a pod's annotation cluster-autoscaler.kubernetes.io/safe-to-evict to false while the pod has builds, and to
    /// true otherwise. Needs the verb patch on pods.
    #[arg(help_heading = "Kubernetes pods", long)]
    pub safe_to_evict: bool,
    /// Address of the admin port, which serves probes, metrics and status.
    // Prometheus and the kubelet connect to the pod's address.
    #[arg(
        help_heading = "Admin port",
        long,
        value_name = "HOST:PORT",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: HostPort,
    /// Address of a listener that takes drain and cordon requests without a token: unix:///PATH, which only the proxy's
    /// own user can open, or tcp://127.0.0.1:PORT, which everybody on the machine can [default: none].
    #[arg(help_heading = "Admin port", long, value_name = "ADDR")]
    pub control_listen: Option<LocalAddress>,
    /// File of tokens, one in each line. A request that shows one of them may drain and cordon on the admin port. The
    /// file is read again when it changes [default: none].
    #[arg(help_heading = "Admin port", long, value_name = "FILE")]
    pub admin_token_file: Option<FilePath>,
    /// Builds that have ended and are still listed on the page of the admin port and in /status.json, in each pool. 0
    /// keeps none.
    // A day of a small fleet, and what two screens show. Each takes at most some KB.
    #[arg(help_heading = "Admin port", long, value_name = "COUNT", default_value_t = UpTo::of(200))]
    pub recent_builds: UpTo<10_000>,
    /// Address of the port on which KEDA asks how many builds there are [default: none].
    #[arg(help_heading = "Scaling", long, value_name = "HOST:PORT")]
    pub scaler_listen: Option<HostPort>,
    /// Directory with the certificates for TLS on that port, with the same file names as --tls-dir. If the directory
    /// has a ca.crt, KEDA must show a certificate [default: none, KEDA connects without TLS].
    #[arg(help_heading = "Scaling", long, value_name = "DIR")]
    pub scaler_tls_dir: Option<FilePath>,
    /// How long the proxy still accepts connections after SIGTERM. /readyz answers 503 during this time, so load
    /// balancers notice before a connection is refused.
    #[arg(help_heading = "Shutdown", long, value_name = "DURATION", default_value = "0s")]
    pub drain_delay: Span,
    /// How long the proxy waits for running builds after SIGTERM and the drain delay, for example 30s, 10m or 1h.
    // An hour is as long as a long build. Kubernetes' terminationGracePeriodSeconds must be longer.
    #[arg(help_heading = "Shutdown", long, value_name = "DURATION", default_value = "1h")]
    pub drain_timeout: Span,
    /// Most client connections at once, over all listeners. If the limit of open files allows fewer, that limit counts
    /// [default: as many as the limit of open files allows].
    #[arg(help_heading = "Resources", long, value_name = "COUNT")]
    pub max_connections: Option<Count<1_000_000>>,
    /// Memory for data that the proxy holds before it relays: metadata, first messages, calls that wait for their build.
    /// For example 64MiB or 1GiB [default: a quarter of what the process may use, from 64MiB to 1GiB].
    #[arg(help_heading = "Resources", long, value_name = "SIZE")]
    pub memory_budget: Option<Budget>,
    /// Threads that relay data [default: half the processors].
    #[arg(help_heading = "Resources", long, value_name = "COUNT")]
    pub worker_threads: Option<Count<1024>>,
    /// Collector of OpenTelemetry to which the spans of builds are exported over gRPC: http://HOST:PORT, or
    /// https://HOST:PORT for TLS [default: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT; no spans if
    /// neither is set].
    #[arg(help_heading = "Traces", long, value_name = "URL")]
    pub otlp_endpoint: Option<Collector>,
    /// Format of the log on standard error: text or json.
    #[arg(help_heading = "Log", long, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// Lowest level that is logged: error, warn, info, debug or trace. The level trace includes the libraries, down to
    /// HTTP/2 frames.
    #[arg(help_heading = "Log", long, value_name = "LEVEL", default_value_t)]
    pub log_level: LogLevel,
}

impl Process {
    /// Fills in the defaults that depend on the machine, and checks that the files can be used now.
    pub(super) fn complete(&mut self, problems: &mut Vec<String>) {
        self.memory_budget.get_or_insert_with(|| Budget(default_budget()));
        self.worker_threads.get_or_insert_with(|| Count::nearest(default_worker_threads()));
        if self.otlp_endpoint.is_none() {
            let endpoint = otlp::endpoint(&otlp::variable);
            self.otlp_endpoint = endpoint.unwrap_or_else(|problem| {
                problems.push(problem);
                None
            });
        }
        if let Some(FilePath(path)) = &self.admin_token_file
            && let Err(error) = AdminTokens::read(path)
        {
            problems.push(format!("admin-token-file: {error}"));
        }
        if let Some(FilePath(path)) = &self.client_token_file
            && let Err(error) = ClientTokens::read(path)
        {
            problems.push(format!("client-token-file: {error}"));
        }
        if let Some(FilePath(path)) = &self.scaler_tls_dir
            && let Err(error) = tls::Server::for_scaler(path)
        {
            problems.push(format!("scaler-tls-dir: {error}"));
        }
    }

    /// Where the spans of builds are exported to, if anywhere.
    pub fn traces(&self) -> Option<traces::Config> {
        self.otlp_endpoint.clone().map(|endpoint| otlp::config(endpoint, &otlp::variable))
    }

    /// How many bytes the proxy may hold before it relays them.
    pub fn memory_budget(&self) -> u64 {
        self.memory_budget.map_or_else(default_budget, |Budget(bytes)| bytes)
    }

    /// How many threads relay data.
    pub fn worker_threads(&self) -> usize {
        self.worker_threads.map_or_else(default_worker_threads, Count::get)
    }

    /// What the proxy reads from the daemons' pods, and what it writes to them.
    pub fn pods(&self) -> Pods {
        Pods {
            details: self.pod_details,
            annotations: annotations::Config {
                deletion_cost: self.pod_deletion_cost,
                safe_to_evict: self.safe_to_evict,
            },
        }
    }
}

/// Half the processors. The streams of one build wake each other all the time, which costs nothing on one thread and a
/// system call across threads.
fn default_worker_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).div_ceil(2)
}
