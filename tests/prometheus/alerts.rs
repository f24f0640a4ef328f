//! The alerts, each with series for which it fires and with series for which it stays silent.

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command, sync::LazyLock};

use regex::Regex;
use serde_json::{Value, json};

use crate::{
    CHART,
    support::{client::text, tools::tool},
};

/// The rules that the chart renders, as a file for Prometheus.
pub(crate) fn rules() -> &'static Value {
    static RULES: LazyLock<Value> = LazyLock::new(render);
    &RULES
}

fn render() -> Value {
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

/// The names of all alerts.
pub(crate) fn names() -> BTreeSet<String> {
    let rules = rules()["groups"][0]["rules"].as_array().expect("a list");
    rules.iter().map(|rule| rule["alert"].as_str().expect("a name").to_owned()).collect()
}

/// Evaluates the alerts after an hour with a value of each series every minute. Returns the alerts that fire.
fn alerts_after_an_hour(series: &[(&str, &str)]) -> BTreeSet<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    fs::write(path("rules.json"), rules().to_string()).expect("written");
    let labels = r#"namespace="buildkit",service="buildkit-lb-admin",pod="proxy-0",pool="default""#;
    let series: Vec<_> = series
        .iter()
        .map(|(name, values)| {
            let (name, own) = name.trim_end_matches('}').split_once('{').unwrap_or((name, ""));
            json!({"series": format!("{name}{{{labels},{own}}}"), "values": values})
        })
        .collect();
    // The test says that no alert fires, and promtool reports those that do.
    let none: Vec<_> = names()
        .iter()
        .map(|alert| json!({"eval_time": "1h", "alertname": alert, "exp_alerts": []}))
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

/// Series of a proxy with which nothing is wrong, although some things happen that alerts must not be about.
const WELL: &[(&str, &str)] = &[
    ("buildkit_lb_connections_active", "3x60"),
    (READY, "1x60"),
    (UNHEALTHY, "0x60"),
    (LOST, "0x60"),
    (SYNCED, "0+60x60"),
    ("buildkit_lb_discovery_last_sync_timestamp_seconds{source=\"backend\"}", "0x60"),
    (NO_DISCOVERY, "0x60"),
    (NO_PATCH, "0x60"),
    (DRAINED, "0x60"),
    (REMAINING, "0x60"),
    (DRAINING, "0x60"),
    (DEGRADATIONS, "0x60"),
    (DEGRADED, "0x60"),
    (EXPIRY, "2000000x60"),
    (QUEUE, "0x45 3x9 0x6"),
    (FULL, "0x60"),
    (MEMORY, "0x60"),
    ("buildkit_lb_rejected_total{reason=\"unknown_build\"}", "0+1x60"),
    (DENIED, "0+1x60"),
    // A fifth of the builds with a key spill. Builds without a key have no home.
    (SPILLS, "0+2x60"),
    (HOMES, "0+8x60"),
    ("buildkit_lb_route_decisions_total{outcome=\"failover\",key_source=\"none\"}", "0+50x60"),
    (RELOADS, "0x60"),
    ("buildkit_lb_certificate_reloads_total{side=\"client\",result=\"ok\"}", "0+1x60"),
    (HANDSHAKES, "0x30 0+1x5 5x25"),
    ("buildkit_lb_connection_errors_total{reason=\"tls_aborted\"}", "0+6x60"),
    (DAEMON_TLS, "0x60"),
    (WRONG_TOKEN, "0x50 0+1x5 5x5"),
    ("buildkit_lb_admin_requests_refused_total{reason=\"disabled\"}", "0+6x60"),
    (RECORDS, "0x60"),
    (UNREAD, "0x50 0+10x5 50x5"),
    ("buildkit_lb_backend_metrics_reads_total{result=\"ok\"}", "0+6x60"),
    (SPANS, "0x50 0+10x5 50x5"),
    ("buildkit_lb_spans_total{result=\"exported\"}", "0+50x60"),
];

const READY: &str = "buildkit_lb_backend_state{backend=\"a\",state=\"ready\"}";
const UNHEALTHY: &str = "buildkit_lb_backend_state{backend=\"a\",state=\"unhealthy\"}";
const LOST: &str = "buildkit_lb_sessions_total{backend=\"a\",result=\"backend_lost\"}";
const SYNCED: &str = "buildkit_lb_discovery_last_sync_timestamp_seconds{source=\"k\"}";
const NO_DISCOVERY: &str = "buildkit_lb_discovery_errors_total{source=\"k\",reason=\"forbidden\"}";
const NO_PATCH: &str = "buildkit_lb_pod_errors_total{verb=\"patch\",reason=\"forbidden\"}";
const DRAINED: &str = "buildkit_lb_backend_drains_total{result=\"timeout\"}";
const REMAINING: &str = "buildkit_lb_drain_builds_remaining";
const DRAINING: &str = "buildkit_lb_drain_in_progress";
const DEGRADATIONS: &str = "buildkit_lb_backend_degraded_total{backend=\"a\"}";
const DEGRADED: &str = "buildkit_lb_backend_state{backend=\"a\",state=\"degraded\"}";
const EXPIRY: &str = "buildkit_lb_certificate_expiry_timestamp_seconds{side=\"client\"}";
const QUEUE: &str = "buildkit_lb_queue_depth";
const FULL: &str = "buildkit_lb_rejected_total{reason=\"queue_full\"}";
const MEMORY: &str = "buildkit_lb_rejected_total{reason=\"memory\"}";
const DENIED: &str = "buildkit_lb_rejected_total{reason=\"denied\"}";
const SPILLS: &str = "buildkit_lb_route_decisions_total{outcome=\"spill\",key_source=\"image\"}";
const HOMES: &str = "buildkit_lb_route_decisions_total{outcome=\"home\",key_source=\"image\"}";
const RELOADS: &str = "buildkit_lb_certificate_reloads_total{side=\"client\",result=\"failed\"}";
const HANDSHAKES: &str = "buildkit_lb_connection_errors_total{reason=\"tls_unknown_ca\"}";
const DAEMON_TLS: &str = "buildkit_lb_upstream_errors_total{backend=\"a\",reason=\"tls\"}";
const WRONG_TOKEN: &str = "buildkit_lb_admin_requests_refused_total{reason=\"wrong_token\"}";
const UNREAD: &str = "buildkit_lb_backend_metrics_reads_total{result=\"failed\"}";
const SPANS: &str = "buildkit_lb_spans_total{result=\"failed\"}";
const RECORDS: &str = "buildkit_lb_log_records_dropped_total";

/// What changes when something is wrong, and the alert that must come for it. Everything else stays well.
const WRONG: &[(&str, &[(&str, &str)])] = &[
    ("BuildkitLbNoBackendReady", &[(READY, "0x60")]),
    ("BuildkitLbBackendUnhealthy", &[(UNHEALTHY, "0x45 1x15")]),
    ("BuildkitLbBuildsLost", &[(LOST, "0x55 1x5")]),
    ("BuildkitLbDiscoveryStale", &[(SYNCED, "0+60x50 3000x10")]),
    ("BuildkitLbRightsMissing", &[(NO_DISCOVERY, "0x40 1+1x20")]),
    ("BuildkitLbRightsMissing", &[(NO_PATCH, "0x40 1+1x20")]),
    ("BuildkitLbDaemonEndsBeforeItsBuilds", &[(DRAINED, "0x55 1x5")]),
    ("BuildkitLbBackendDegraded", &[(DEGRADATIONS, "0x50 1x10")]),
    (
        "BuildkitLbBackendDegraded",
        &[(READY, "1x20 0x40"), (DEGRADATIONS, "0x20 1x40"), (DEGRADED, "0x20 1x40")],
    ),
    ("BuildkitLbCertificateExpires", &[(EXPIRY, "1000000x60")]),
    ("BuildkitLbBuildsWait", &[(QUEUE, "0x45 3x15")]),
    ("BuildkitLbProxyDrainsForLong", &[(REMAINING, "0x5 2x55"), (DRAINING, "0x5 1x55")]),
    ("BuildkitLbBuildsRefused", &[(FULL, "0x55 1x5")]),
    ("BuildkitLbProxyShort", &[(MEMORY, "0x55 1x5")]),
    ("BuildkitLbBuildsFarFromTheirCache", &[(SPILLS, "0+5x60")]),
    ("BuildkitLbCertificateNotLoaded", &[(RELOADS, "0x30 1x30")]),
    ("BuildkitLbTlsHandshakesFail", &[(HANDSHAKES, "0x50 0+3x10")]),
    ("BuildkitLbDaemonTlsFails", &[(DAEMON_TLS, "0x40 1+1x20")]),
    ("BuildkitLbClientsDenied", &[(DENIED, "0+2x60")]),
    ("BuildkitLbAdminRequestsRefused", &[(WRONG_TOKEN, "0x50 0+3x10")]),
    ("BuildkitLbBackendMetricsUnread", &[(UNREAD, "0x30 0+6x30")]),
    ("BuildkitLbSpansLost", &[(SPANS, "0x30 0+5x30")]),
    ("BuildkitLbLogRecordsDropped", &[(RECORDS, "0x55 7x5")]),
];

#[test]
fn every_alert_comes_for_what_it_is_about_and_not_otherwise() {
    let silent = BTreeSet::new();
    assert_eq!(alerts_after_an_hour(WELL), silent);
    for (alert, changes) in WRONG {
        let changed = |name: &str| changes.iter().find(|(changed, _)| *changed == name);
        let series = WELL.iter().map(|well| *changed(well.0).unwrap_or(well));
        let series: Vec<_> = series.collect();
        let expected = BTreeSet::from([(*alert).to_owned()]);
        assert_eq!(alerts_after_an_hour(&series), expected, "{changes:?}");
    }
    let fired: BTreeSet<_> = WRONG.iter().map(|(alert, _)| (*alert).to_owned()).collect();
    assert_eq!(fired, names(), "each alert has fired");
    let nobody = alerts_after_an_hour(&WELL[..1]);
    assert_eq!(nobody, BTreeSet::from(["BuildkitLbNoBackendReady".to_owned()]));
}
