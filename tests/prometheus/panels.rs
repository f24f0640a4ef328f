//! The dashboard's queries on a real proxy.

use std::{collections::BTreeSet, fs, io::Write as _, net::TcpStream, time::Duration};

use regex::Regex;
use serde_json::Value;

use crate::{
    CHART,
    alerts::{names, rules},
    server::Prometheus,
    support::{
        buildkitd::Buildkitd,
        certificates::{Authority, Request},
        client::{Context, build, buildctl_build, buildctl_tls, run, succeed},
        eventually,
        kubernetes::unreachable_kubeconfig,
        proxy::Builder,
    },
};

#[test]
fn prometheus_scrapes_the_metrics_of_a_build_and_fills_the_dashboard() {
    let daemon = Buildkitd::start_with_metrics("d0");
    let proxy = Builder::default().backend(&with_metrics(&daemon)).start();
    let prometheus = Prometheus::start(&proxy);
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo scraped")));

    prometheus.is("sum(buildkit_lb_builds_total{grpc_code=\"OK\",backend=\"d0\"})", "1");
    prometheus.is("sum(buildkit_lb_build_duration_seconds_count)", "1");
    prometheus.is("count(buildkit_lb_backend_state == 1)", "1");
    // To an alert, a series that begins with one has not increased.
    prometheus.is("sum(buildkit_lb_binding_conflicts_total)", "0");
    prometheus.is("count(buildkit_lb_upstream_errors_total{backend=\"d0\"})", "5");
    let version = env!("CARGO_PKG_VERSION");
    prometheus.is(&format!("buildkit_lb_build_info{{version=\"{version}\"}}"), "1");

    // A metric has no series before its first event: no discovery, no fault, no drain.
    let quiet = [
        "Builds at home, 1 h",
        "Builds failed, 1 h",
        "Builds a draining proxy waits for",
        "Certificates expire in",
        "Changes of certificates",
        "Discovery is behind by",
        "Failures of discovery and of requests about pods, per minute",
    ];
    for (title, query) in panels() {
        let answer = eventually(&title, Duration::from_secs(60), || {
            let answer = prometheus.ask(&query)?;
            let filled = answer["data"]["result"].as_array().is_some_and(|r| !r.is_empty());
            (filled || quiet.contains(&&*title) || answer["status"] != "success").then_some(answer)
        });
        assert_eq!(answer["status"], "success", "{title}: {query}: {answer}");
    }
    // Nothing is wrong with this fleet, so no alert says so.
    prometheus.evaluates(&names());
    assert_eq!(prometheus.alerts(), BTreeSet::new());
}

#[test]
fn dashboard_and_alerts_know_no_metric_that_the_proxy_does_not_have() {
    // A metric has no series before its first event, so every event must happen: a build, a daemon and an API server
    // that do not exist, a client with another protocol, a call that is refused.
    let daemon = Buildkitd::start_with_metrics("d0");
    let kubeconfig = unreachable_kubeconfig();
    let proxy = Builder::default()
        .backend(&with_metrics(&daemon))
        .backend("a=tcp://127.0.0.1:1")
        .args(&["--pod-details"]);
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let proxy = proxy.args(&["--tls-dir", own.to_str().expect("UTF-8")]);
    let proxy = proxy.discover("n/s", kubeconfig.path()).start();
    let client = authority.directory("client", &Request::CLIENT);
    let buildctl = || buildctl_tls(&proxy.addr(), &client);
    succeed(&mut build(buildctl(), &Context::busybox("RUN echo counted")));
    let mut stranger = TcpStream::connect(proxy.socket()).expect("connected");
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("written");
    assert!(!run(buildctl().args(["debug", "logs", "nothing"])).status.success());
    for (metric, label) in [
        ("buildkit_lb_connection_errors_total", "http1"),
        ("buildkit_lb_upstream_errors_total", "backend=\"a\""),
        ("buildkit_lb_pod_errors_total", "unreachable"),
        ("buildkit_lb_discovery_errors_total", "unreachable"),
        ("buildkit_lb_backend_metrics_reads_total", "result=\"ok\""),
    ] {
        eventually(metric, Duration::from_secs(60), || {
            (proxy.metric(metric, &[label]) > 0.0).then_some(())
        });
    }
    let (_code, metrics) = proxy.admin("GET", "/metrics");
    let kinds = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let known: BTreeSet<String> = kinds
        .flat_map(|kind| {
            let (name, kind) = kind.split_once(' ').expect("a name and a kind");
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_count", "_sum"],
                "info" => &["_info"],
                _ => &[""],
            };
            endings.iter().map(move |ending| format!("{name}{ending}"))
        })
        .collect();
    let metric = Regex::new(r"\b(?:buildkit_lb|grpc_server)_[a-z_]+").expect("valid");
    let rules = rules().to_string();
    let queries = panels().into_iter().map(|(_title, query)| query).chain([rules]);
    let mut used = BTreeSet::new();
    for query in queries {
        for name in metric.find_iter(&query).map(|found| found.as_str()) {
            assert!(known.contains(name), "{name} is not in {known:?}");
            used.insert(name.to_owned());
        }
    }
    // Whoever is on call looks at the dashboard, so everything that the proxy counts stands there or has an alert.
    let shown = |metric: &&str| used.iter().any(|name| name.starts_with(*metric));
    let kinds = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names = kinds.filter_map(|kind| Some(kind.split_once(' ')?.0));
    let missing: Vec<_> = names.filter(|metric| !shown(metric)).collect();
    assert_eq!(missing, [""; 0]);
}

/// A daemon whose metrics are read.
fn with_metrics(daemon: &Buildkitd) -> String {
    format!("{}?metrics={}", daemon.backend(), daemon.metrics_port())
}

/// The dashboard's queries with the titles of their panels, for all values of its variables.
fn panels() -> Vec<(String, String)> {
    let dashboard = fs::read_to_string(format!("{CHART}/dashboards/buildkit-lb.json"));
    let dashboard: Value = serde_json::from_str(&dashboard.expect("a file")).expect("JSON");
    let mut queries = Vec::new();
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("a list") {
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{}", panel["id"]);
        let title = panel["title"].as_str().expect("a title");
        for target in panel["targets"].as_array().into_iter().flatten() {
            let mut query = target["expr"].as_str().expect("a query").to_owned();
            query = query.replace("$__rate_interval", "1m");
            for variable in ["$namespace", "$pod", "$pool"] {
                query = query.replace(variable, ".*");
            }
            assert!(!query.contains('$'), "{query}");
            queries.push((title.to_owned(), query));
        }
    }
    assert!(queries.len() > 30, "{}", queries.len());
    queries
}
