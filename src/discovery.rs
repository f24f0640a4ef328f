//! Finds the daemons and keeps the fleet up to date; writes [`Fleet`] and nothing else.
//!
//! Each source reports through its [`Feed`] all that it knows; the [`Register`] joins the reports and
//! makes them the fleet. A source that fails keeps its last report: daemons do not go away because
//! whoever lists them does.

pub mod dns;
pub mod kubernetes;
pub mod static_list;

use std::{collections::HashSet, fmt, str::FromStr, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use tracing::{info, warn};

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

/// What keeps a source from its work, or from finding anything.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Since when.
    pub since: SystemTime,
    /// What it is.
    pub text: String,
    /// Whether the last report may be out of date: the source failed.
    pub stale: bool,
}

/// How a source stands.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The source as the configuration writes it.
    pub source: String,
    /// Endpoints it reported last.
    pub endpoints: usize,
    /// When its report was last known to be right.
    pub synced: Option<SystemTime>,
    /// What is wrong, if anything is.
    pub trouble: Option<Trouble>,
}

/// What each source reported last. Their union is the fleet.
#[derive(Debug)]
pub struct Register {
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    parts: Mutex<Vec<Part>>,
}

#[derive(Debug)]
struct Part {
    standing: Standing,
    endpoints: Vec<Endpoint>,
}

impl Register {
    /// A register without sources, which leaves `fleet` as it is.
    pub fn new(fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { fleet, metrics, parts: Mutex::default() })
    }

    /// Adds a source. Where two sources use one name, the one added first has it.
    pub fn source(self: &Arc<Self>, source: &impl ToString) -> Feed {
        let source = source.to_string();
        let mut parts = self.parts.lock();
        let standing =
            Standing { source: source.clone(), endpoints: 0, synced: None, trouble: None };
        parts.push(Part { standing, endpoints: Vec::new() });
        Feed { register: Arc::clone(self), index: parts.len() - 1, source }
    }

    /// How each source stands.
    pub fn standings(&self) -> Vec<Standing> {
        self.parts.lock().iter().map(|part| part.standing.clone()).collect()
    }
}

/// All endpoints: one for each address, and no name twice.
fn union(parts: &[Part]) -> Vec<Endpoint> {
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    let mut all = Vec::new();
    for endpoint in parts.iter().flat_map(|part| &part.endpoints) {
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

/// Where one source reports.
#[derive(Debug)]
pub struct Feed {
    register: Arc<Register>,
    index: usize,
    source: String,
}

impl Feed {
    /// Reports all endpoints of the source; `waits` says what is missing if there should be more.
    pub fn found(&self, endpoints: Vec<Endpoint>, waits: Option<String>) {
        let mut parts = self.register.parts.lock();
        let part = &mut parts[self.index];
        self.tell(part, waits.map(|text| (text, false)));
        part.standing.endpoints = endpoints.len();
        self.count_sync(part);
        if part.endpoints != endpoints {
            part.endpoints = endpoints;
            self.register.fleet.replace(union(&parts));
        }
    }

    /// Says that the last report still holds.
    pub fn confirmed(&self) {
        let mut parts = self.register.parts.lock();
        let part = &mut parts[self.index];
        if !part.standing.trouble.as_ref().is_some_and(|trouble| trouble.stale) {
            self.count_sync(part);
        }
    }

    /// Reports that the source fails; its endpoints stay.
    pub fn failed(&self, reason: Reason, text: String) {
        self.count_error(reason);
        self.tell(&mut self.register.parts.lock()[self.index], Some((text, true)));
    }

    /// Where the source counts what it does beside its reports.
    pub fn metrics(&self) -> &Metrics {
        &self.register.metrics
    }

    /// Counts a failure that the source itself mends.
    pub fn count_error(&self, reason: Reason) {
        self.register.metrics.discovery_error(&self.source, reason);
    }

    /// Sets the trouble and logs it, once for each change.
    fn tell(&self, part: &mut Part, trouble: Option<(String, bool)>) {
        let source = &self.source;
        let old = &part.standing.trouble;
        let same = match (old, &trouble) {
            (Some(old), Some((text, stale))) => old.text == *text && old.stale == *stale,
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        match &trouble {
            Some((error, true)) => warn!(source, error, "discovery failed, the last fleet stays"),
            Some((cause, false)) => warn!(source, cause, "discovery waits"),
            None => info!(source, "discovery is well"),
        }
        // One outage may show in several ways; it began with the first.
        let began = |stale| old.as_ref().filter(|old| old.stale == stale).map(|old| old.since);
        part.standing.trouble = trouble.map(|(text, stale)| Trouble {
            since: began(stale).unwrap_or_else(SystemTime::now),
            text,
            stale,
        });
    }

    fn count_sync(&self, part: &mut Part) {
        let now = SystemTime::now();
        part.standing.synced = Some(now);
        self.register.metrics.discovery_synced(&self.source, part.standing.endpoints, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn endpoint(name: &str, host: &str) -> Endpoint {
        Endpoint::new(name, Address::Tcp { host: host.into(), port: 1 })
    }

    fn register() -> (Arc<Fleet>, Arc<Metrics>, Arc<Register>) {
        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)));
        let register = Register::new(Arc::clone(&fleet), Arc::clone(&metrics));
        (fleet, metrics, register)
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
        let (fleet, _metrics, register) = register();
        let (one, two) = (register.source(&"one"), register.source(&"two"));
        one.found(vec![endpoint("a", "x"), endpoint("b", "y")], None);
        two.found(vec![endpoint("a", "z"), endpoint("c", "y")], None);
        assert_eq!(names(&fleet), ["a", "b", "z:1"], "a name and an address count once");
        one.found(Vec::new(), None);
        assert_eq!(names(&fleet), ["a", "c"]);
    }

    #[test]
    fn a_source_that_fails_keeps_its_last_report_and_says_since_when() {
        let (fleet, metrics, register) = register();
        let feed = register.source(&"s");
        feed.found(vec![endpoint("a", "x")], None);
        feed.failed(Reason::Unreachable, "refused".into());
        let began = register.standings()[0].trouble.clone().expect("trouble").since;
        feed.failed(Reason::Unreachable, "no route".into());
        let standing = register.standings().remove(0);
        let trouble = standing.trouble.expect("trouble");
        assert_eq!((trouble.since, trouble.text.as_str()), (began, "no route"));
        assert_eq!((names(&fleet), standing.endpoints), (vec!["a".to_owned()], 1));
        let text = metrics.families().render();
        let errors =
            "discovery_errors_total{pool=\"default\",source=\"s\",reason=\"unreachable\"} 2";
        assert!(text.contains(errors), "{text}");
        feed.found(vec![endpoint("a", "x")], None);
        assert!(register.standings()[0].trouble.is_none());
    }
}
