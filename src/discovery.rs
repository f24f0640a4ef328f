//! Finds the daemons and keeps the fleet up to date; writes [`Fleet`] and nothing else.
//!
//! Each [`Source`] reports all daemons that it knows; [`Discovery`] joins the reports, and their union is the
//! fleet. A source that fails keeps its last report: a daemon still runs when the server that lists it is down.

pub mod dns;
pub mod kubernetes;
mod metrics_port;
pub mod static_list;

use std::{collections::HashSet, fmt, str::FromStr, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use tracing::{info, warn};

pub use self::metrics_port::MetricsPort;
use crate::{
    fleet::{Endpoint, Fleet},
    metrics::Metrics,
    outage::Reason,
};

/// Where daemons are found, as `--discover` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// `kubernetes://NAMESPACE/SERVICE[:PORT]`.
    Kubernetes(kubernetes::Service),
    /// `dns://NAME:PORT` or `dns://_SERVICE._tcp.NAME`.
    Dns(dns::Name),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("kubernetes", rest)) => rest.parse().map(Self::Kubernetes),
            Some(("dns", rest)) => rest.parse().map(Self::Dns),
            _ => Err(format!(
                "`{text}` is neither kubernetes://NAMESPACE/SERVICE[:PORT] nor dns://NAME:PORT"
            )),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kubernetes(service) => write!(f, "kubernetes://{service}"),
            Self::Dns(name) => write!(f, "dns://{name}"),
        }
    }
}

/// Why a source failed, or why it found no endpoint.
#[derive(Debug, Clone)]
pub struct SourceError {
    /// When the failure began.
    pub since: SystemTime,
    /// The cause, for the log and the admin port.
    pub text: String,
    /// Whether the last report may be out of date, because the source failed.
    pub stale: bool,
}

/// The last report of a source, and its error.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// The source's name, as the configuration writes it.
    pub source: String,
    /// The number of endpoints in the last report.
    pub endpoints: usize,
    /// When the report was last known to be right.
    pub synced: Option<SystemTime>,
    /// The source's error, if it has one.
    pub error: Option<SourceError>,
}

/// The last report of each source. Their union is the fleet.
#[derive(Debug)]
pub struct Discovery {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    /// The port at which daemons serve metrics, if they do.
    metrics_port: Option<MetricsPort>,
    reports: Mutex<Vec<Report>>,
}

#[derive(Debug)]
struct Report {
    status: SourceStatus,
    endpoints: Vec<Endpoint>,
}

impl Discovery {
    /// Without sources, which leaves `fleet` as it is. Daemons serve metrics at `metrics_port`, if they do.
    pub fn new(
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        metrics_port: Option<MetricsPort>,
    ) -> Arc<Self> {
        Arc::new(Self { fleet, metrics, metrics_port, reports: Mutex::default() })
    }

    /// Adds a source. If two sources report a backend of the same name, the source added first keeps the name.
    pub fn source(self: &Arc<Self>, name: &impl ToString) -> Source {
        let name = name.to_string();
        let mut reports = self.reports.lock();
        let status = SourceStatus { source: name.clone(), endpoints: 0, synced: None, error: None };
        reports.push(Report { status, endpoints: Vec::new() });
        Source { discovery: Arc::clone(self), index: reports.len() - 1, name }
    }

    /// The status of each source.
    pub fn statuses(&self) -> Vec<SourceStatus> {
        self.reports.lock().iter().map(|report| report.status.clone()).collect()
    }
}

/// All endpoints: one for each address, and no name twice.
fn union(reports: &[Report]) -> Vec<Endpoint> {
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    let mut all = Vec::new();
    for endpoint in reports.iter().flat_map(|report| &report.endpoints) {
        if !addresses.insert(&endpoint.address) {
            continue;
        }
        let mut endpoint = endpoint.clone();
        // Two services may have a pod of one name each, in namespaces of their own.
        if names.contains(&endpoint.name) {
            endpoint.name = endpoint.address.authority().into();
        }
        if names.insert(Arc::clone(&endpoint.name)) {
            all.push(endpoint);
        }
    }
    all
}

/// One source of endpoints, which reports to [`Discovery`].
#[derive(Debug)]
pub struct Source {
    discovery: Arc<Discovery>,
    /// Where the source's report is in the list of reports.
    index: usize,
    name: String,
}

impl Source {
    /// Reports all endpoints of the source. If there should be more, `missing` says what is missing.
    pub fn found(&self, mut endpoints: Vec<Endpoint>, missing: Option<String>) {
        if let Some(port) = &self.discovery.metrics_port {
            endpoints.iter_mut().for_each(|endpoint| port.add(endpoint));
        }
        let mut reports = self.discovery.reports.lock();
        let report = &mut reports[self.index];
        self.set_error(report, missing.map(|text| (text, false)));
        report.status.endpoints = endpoints.len();
        self.count_sync(report);
        if report.endpoints != endpoints {
            report.endpoints = endpoints;
            self.discovery.fleet.replace(union(&reports));
        }
    }

    /// Says that the last report still holds.
    pub fn confirmed(&self) {
        let mut reports = self.discovery.reports.lock();
        let report = &mut reports[self.index];
        if !report.status.error.as_ref().is_some_and(|error| error.stale) {
            self.count_sync(report);
        }
    }

    /// Reports that the source fails; its endpoints stay.
    pub fn failed(&self, reason: Reason, text: String) {
        self.count_error(reason);
        self.set_error(&mut self.discovery.reports.lock()[self.index], Some((text, true)));
    }

    /// The name that a Service gives to the port at which its daemons serve metrics.
    pub fn metrics_port_name(&self) -> Option<&str> {
        match &self.discovery.metrics_port {
            Some(MetricsPort::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// The metrics of the source's pool.
    pub fn metrics(&self) -> &Metrics {
        &self.discovery.metrics
    }

    /// Counts a failure from which the source recovers by itself.
    pub fn count_error(&self, reason: Reason) {
        self.discovery.metrics.discovery_error(&self.name, reason);
    }

    /// Sets the source's error, and logs each change of it once.
    fn set_error(&self, report: &mut Report, error: Option<(String, bool)>) {
        let source = &self.name;
        let old = &report.status.error;
        let same = match (old, &error) {
            (Some(old), Some((text, stale))) => old.text == *text && old.stale == *stale,
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        match &error {
            Some((error, true)) => {
                warn!(source, error, "discovery failed, the fleet stays as it is");
            }
            Some((cause, false)) => warn!(source, cause, "discovery found no endpoints"),
            None => info!(source, "discovery recovered"),
        }
        // One outage may show in several errors; it began with the first of them.
        let began = |stale| old.as_ref().filter(|old| old.stale == stale).map(|old| old.since);
        report.status.error = error.map(|(text, stale)| SourceError {
            since: began(stale).unwrap_or_else(SystemTime::now),
            text,
            stale,
        });
    }

    fn count_sync(&self, report: &mut Report) {
        let now = SystemTime::now();
        report.status.synced = Some(now);
        self.discovery.metrics.discovery_synced(&self.name, report.status.endpoints, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn endpoint(name: &str, host: &str) -> Endpoint {
        Endpoint::new(name, Address::Tcp { host: host.into(), port: 1 })
    }

    fn discovery() -> (Arc<Fleet>, Arc<Metrics>, Arc<Discovery>) {
        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)));
        let discovery = Discovery::new(Arc::clone(&fleet), Arc::clone(&metrics), None);
        (fleet, metrics, discovery)
    }

    fn names(fleet: &Fleet) -> Vec<String> {
        fleet.backends().iter().map(|backend| backend.name().to_owned()).collect()
    }

    #[test]
    fn targets_are_read_and_written_alike() {
        for text in
            ["kubernetes://build/buildkitd", "kubernetes://b/s:1234", "kubernetes://b/s:grpc"]
        {
            assert_eq!(text.parse::<Target>().expect(text).to_string(), text);
        }
        for text in [
            "",
            "consul://x",
            "kubernetes://",
            "kubernetes://a",
            "kubernetes:///b",
            "kubernetes://a/",
            "kubernetes://a/b:",
            "kubernetes://a/b:0",
            "kubernetes://a/b:70000",
            "kubernetes://A/b",
            "kubernetes://a/b,c=d",
            "kubernetes://a/b/c",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_fleet_is_what_all_sources_report() {
        let (fleet, _metrics, discovery) = discovery();
        let (one, two) = (discovery.source(&"one"), discovery.source(&"two"));
        one.found(vec![endpoint("a", "x"), endpoint("b", "y")], None);
        two.found(vec![endpoint("a", "z"), endpoint("c", "y")], None);
        assert_eq!(names(&fleet), ["a", "b", "z:1"], "a name and an address count once");
        one.found(Vec::new(), None);
        assert_eq!(names(&fleet), ["a", "c"]);
    }

    #[test]
    fn a_source_that_fails_keeps_its_last_report_and_says_since_when() {
        let (fleet, metrics, discovery) = discovery();
        let source = discovery.source(&"s");
        source.found(vec![endpoint("a", "x")], None);
        source.failed(Reason::Unreachable, "refused".into());
        let began = discovery.statuses()[0].error.clone().expect("error").since;
        source.failed(Reason::Unreachable, "no route".into());
        let status = discovery.statuses().remove(0);
        let error = status.error.expect("error");
        assert_eq!((error.since, error.text.as_str()), (began, "no route"));
        assert_eq!((names(&fleet), status.endpoints), (vec!["a".to_owned()], 1));
        let text = metrics.families().render();
        let errors =
            "discovery_errors_total{pool=\"default\",source=\"s\",reason=\"unreachable\"} 2";
        assert!(text.contains(errors), "{text}");
        source.found(vec![endpoint("a", "x")], None);
        assert!(discovery.statuses()[0].error.is_none());
    }
}
