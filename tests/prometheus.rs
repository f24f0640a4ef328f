//! A real Prometheus scrapes the proxy, understands every metric, and answers every query of the dashboard and the
//! alerts.

mod support;

use std::{
    collections::BTreeSet, fs, io::Write as _, net::TcpStream, path::PathBuf, process::Command,
    time::Duration,
};

use regex::Regex;
use serde_json::{Value, json};
use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    child::Guarded,
    client::{Context, build, buildctl_build, buildctl_tls, run, succeed, text},
    eventually, free_port,
    kubernetes::unreachable_kubeconfig,
    proxy::Proxy,
    tools::tool,
};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart");

/// A Prometheus that scrapes one proxy as the chart's monitor configures it.
struct Prometheus {
    url: String,
    _process: Guarded,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    fn start(proxy: &Proxy) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let labels = "{namespace: buildkit, service: buildkit-lb-admin, pod: proxy-0}";
        let config = format!(
            "global: {{scrape_interval: 1s}}\n\
             scrape_configs: [{{job_name: lb, static_configs: \
             [{{targets: ['{}'], labels: {labels}}}]}}]\n",
            proxy.admin_socket()
        );
        fs::write(path("prometheus.yml"), config).expect("written");
        let url = format!("127.0.0.1:{}", free_port());
        let args = [
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
            format!("--web.listen-address={url}"),
        ];
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let process = Guarded::start_in(&tool("prometheus"), &args, &path(""));
        Self { url, _process: process, _directory: directory }
    }

    /// The whole answer, once it is not empty.
    fn ask(&self, query: &str) -> Option<Value> {
        let url = format!("http://{}/api/v1/query", self.url);
        let query = format!("query={query}");
        let curl =
            Command::new(tool("curl")).args(["-sG", &url, "--data-urlencode", &query]).output();
        serde_json::from_slice(&curl.ok()?.stdout).ok()
    }

    /// Waits until the first value equals this one.
    fn is(&self, query: &str, value: &str) {
        eventually(query, Duration::from_secs(30), || {
            let answer = self.ask(query)?;
            let found = answer["data"]["result"][0]["value"][1].as_str()?;
            (found == value).then_some(())
        });
    }
}

#[test]
fn prometheus_scrapes_the_metrics_of_a_build_and_fills_the_dashboard() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let prometheus = Prometheus::start(&proxy);
    prometheus.is("up{job=\"lb\"}", "1");
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
        "Connections that ended badly, per minute",
        "Discovery is behind by",
        "Failures of discovery and of requests about pods, per minute",
        "Refused by the proxy, per minute",
        "Builds a draining proxy waits for",
    ];
    for (title, query) in panels() {
        let answer = eventually(&title, Duration::from_secs(15), || {
            let answer = prometheus.ask(&query)?;
            let filled = answer["data"]["result"].as_array().is_some_and(|r| !r.is_empty());
            (filled || quiet.contains(&&*title) || answer["status"] != "success").then_some(answer)
        });
        assert_eq!(answer["status"], "success", "{title}: {query}: {answer}");
    }
}

#[test]
fn dashboard_and_alerts_know_no_metric_that_the_proxy_does_not_have() {
    // A metric has no series before its first event, so every event must happen: a build, a daemon and an API server
    // that do not exist, a client with another protocol, a call that is refused.
    let fleet = Buildkitd::fleet(1);
    let kubeconfig = unreachable_kubeconfig();
    let proxy = Proxy::in_front_of(&fleet).backend("a=tcp://127.0.0.1:1").args(&["--pod-details"]);
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
    ] {
        eventually(metric, Duration::from_secs(20), || {
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
    assert!(used.len() > 20, "{used:?}");
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

/// The rules that the chart renders, as a file for Prometheus.
fn rules() -> Value {
    let mut helm = Command::new(tool("helm"));
    helm.args(["template", "buildkit-lb", CHART, "--namespace", "buildkit"]);
    helm.args(["--show-only", "templates/monitoring.yaml", "--kube-version", "1.36.3"]);
    helm.args(["--set", "image.registry=registry.example"]);
    helm.args(["--set", "metrics.prometheusRule.enabled=true,metrics.serviceMonitor.enabled=true"]);
    let output = helm.output().expect("helm runs");
    assert!(output.status.success(), "{}", text(&output));
    let yaml = String::from_utf8_lossy(&output.stdout);
    let documents: Vec<Value> = serde_saphyr::from_multiple(&yaml).expect("YAML");
    let rule = documents.into_iter().find(|document| document["kind"] == "PrometheusRule");
    rule.expect("there are rules")["spec"].clone()
}

/// Evaluates the alerts after an hour with a value of each series every minute. Returns the alerts that fire.
fn alerts_after_an_hour(series: &[(&str, &str)]) -> BTreeSet<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    fs::write(path("rules.json"), rules().to_string()).expect("written");
    let output =
        Command::new(tool("promtool")).args(["check", "rules"]).arg(path("rules.json")).output();
    let output = output.expect("promtool runs");
    assert!(output.status.success(), "{}", text(&output));
    let labels = r#"namespace="buildkit",service="buildkit-lb-admin",pod="proxy-0",pool="default""#;
    let series: Vec<_> = series
        .iter()
        .map(|(name, values)| {
            let (name, own) = name.trim_end_matches('}').split_once('{').unwrap_or((name, ""));
            json!({"series": format!("{name}{{{labels},{own}}}"), "values": values})
        })
        .collect();
    // The test says that no alert fires, and promtool reports those that do.
    let names = rules()["groups"][0]["rules"].as_array().expect("a list").clone();
    let none: Vec<_> = names
        .iter()
        .map(|rule| json!({"eval_time": "1h", "alertname": rule["alert"], "exp_alerts": []}))
        .collect();
    let test = json!({
        "rule_files": ["rules.json"],
        "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": none}],
    });
    fs::write(path("test.json"), test.to_string()).expect("written");
    let output =
        Command::new(tool("promtool")).args(["test", "rules"]).arg(path("test.json")).output();
    let told = text(&output.expect("promtool runs"));
    assert!(!told.contains("unmarshal") && !told.contains("parse error"), "{told}");
    let alert = Regex::new(r"alertname: ?(\w+)").expect("valid");
    alert.captures_iter(&told).map(|found| found[1].to_owned()).collect()
}

#[test]
fn alerts_come_for_what_they_are_about_and_not_otherwise() {
    let well = [
        ("buildkit_lb_connections_active", "3x60"),
        ("buildkit_lb_backend_state{backend=\"a\",state=\"ready\"}", "1x60"),
        ("buildkit_lb_backend_state{backend=\"a\",state=\"unhealthy\"}", "0x60"),
        ("buildkit_lb_sessions_total{backend=\"a\",result=\"backend_lost\"}", "0x60"),
        ("buildkit_lb_discovery_last_sync_timestamp_seconds{source=\"k\"}", "0+60x60"),
        ("buildkit_lb_discovery_last_sync_timestamp_seconds{source=\"backend\"}", "0x60"),
        ("buildkit_lb_discovery_errors_total{source=\"k\",reason=\"forbidden\"}", "0x60"),
        ("buildkit_lb_pod_errors_total{verb=\"patch\",reason=\"forbidden\"}", "0x60"),
        ("buildkit_lb_backend_drains_total{result=\"timeout\"}", "0x60"),
        ("buildkit_lb_drain_builds_remaining", "0x60"),
        ("buildkit_lb_drain_in_progress", "0x60"),
        ("buildkit_lb_backend_degraded_total{backend=\"a\"}", "0x60"),
        ("buildkit_lb_backend_state{backend=\"a\",state=\"degraded\"}", "0x60"),
        ("buildkit_lb_certificate_expiry_timestamp_seconds{side=\"client\"}", "2000000x60"),
        ("buildkit_lb_queue_depth", "0x45 3x9 0x6"),
    ];
    assert_eq!(alerts_after_an_hour(&well), BTreeSet::new());
    for (alert, changes) in [
        ("BuildkitLbNoBackendReady", &[(1, "0x60")][..]),
        ("BuildkitLbBackendUnhealthy", &[(2, "0x45 1x15")]),
        ("BuildkitLbBuildsLost", &[(3, "0x55 1x5")]),
        ("BuildkitLbDiscoveryStale", &[(4, "0+60x50 3000x10")]),
        ("BuildkitLbRightsMissing", &[(6, "0x40 1+1x20")]),
        ("BuildkitLbRightsMissing", &[(7, "0x40 1+1x20")]),
        ("BuildkitLbDaemonEndsBeforeItsBuilds", &[(8, "0x55 1x5")]),
        ("BuildkitLbBackendDegraded", &[(11, "0x50 1x10")]),
        ("BuildkitLbBackendDegraded", &[(1, "1x20 0x40"), (11, "0x20 1x40"), (12, "0x20 1x40")]),
        ("BuildkitLbCertificateExpires", &[(13, "1000000x60")]),
        ("BuildkitLbBuildsWait", &[(14, "0x45 3x15")]),
        ("BuildkitLbProxyDrainsForLong", &[(9, "0x5 2x55"), (10, "0x5 1x55")]),
    ] {
        let mut series = well;
        for (at, values) in changes {
            series[*at].1 = values;
        }
        let expected = BTreeSet::from([alert.to_owned()]);
        assert_eq!(alerts_after_an_hour(&series), expected, "{changes:?}");
    }
    let nobody = alerts_after_an_hour(&well[..1]);
    assert_eq!(nobody, BTreeSet::from(["BuildkitLbNoBackendReady".to_owned()]));
}
