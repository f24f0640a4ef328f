//! The spans of builds: one trace has those of the client, of the proxy and of the daemon.

use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::{
    collector::{Collector, Span, WAIT},
    support::{
        buildkitd::Buildkitd,
        certificates::{Authority, Request},
        client::{Context, buildctl_build, is_running, succeed},
        eventually,
        proxy::Proxy,
    },
};

const PROXY: &str = "buildkit-lb";

/// Two traces as `TRACEPARENT` names them: one that its client does not record, and one that it records.
const UNRECORDED: &str = "00-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-bbbbbbbbbbbbbbbb-00";
const RECORDED: &str = "00-cccccccccccccccccccccccccccccccc-dddddddddddddddd-01";

/// A client that is killed with its test.
struct Running(Child);

impl Running {
    fn new(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs"))
    }

    fn succeeds(mut self) {
        assert!(self.0.wait().expect("it ends").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The children of `parent` by name.
fn children(collector: &Collector, parent: &Span) -> Vec<String> {
    let mut spans = collector.spans(PROXY);
    spans.retain(|span| span.parent == parent.id && span.trace == parent.trace);
    spans.sort_by_key(|span| span.start);
    spans.into_iter().map(|span| span.name).collect()
}

#[test]
fn one_trace_has_the_spans_of_the_client_the_proxy_and_the_daemon() {
    let collector = Collector::start();
    let authority = Authority::new("of the collector");
    let own = authority.directory("collector", &Request::SERVER);
    let client = authority.directory("proxy", &Request::CLIENT);
    let over_tls = Collector::start_tls(&own);
    let otlp = format!("OTEL_EXPORTER_OTLP_ENDPOINT={}", collector.endpoint());
    let daemon = Buildkitd::start_with("d0", &[&otlp]);
    let file = |name: &str| client.join(name).display().to_string();
    let proxy = Proxy::in_front_of([&daemon])
        .variable(&format!("OTEL_EXPORTER_OTLP_ENDPOINT=https://127.0.0.1:{}", over_tls.port()))
        .variable(&format!("OTEL_EXPORTER_OTLP_CERTIFICATE={}", file("ca.pem")))
        .variable(&format!("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE={}", file("cert.pem")))
        .variable(&format!("OTEL_EXPORTER_OTLP_CLIENT_KEY={}", file("key.pem")))
        .variable("OTEL_RESOURCE_ATTRIBUTES=k8s.pod.name=proxy-0")
        .start();
    let context = Context::busybox("RUN echo traced");
    // The client has no exporter, so it hands its spans to the daemon.
    succeed(&mut buildctl_build(&proxy.addr(), &context));

    let whole = over_tls.span(PROXY, "the span of the build", |span| span.name == "build");
    let solve = collector.span("buildctl", "the client's span", |span| span.id == whole.parent);
    assert_eq!(solve.trace, whole.trace);
    assert!(solve.name.ends_with("Control/Solve"), "{solve:?}");
    let step = |span: &Span| span.trace == whole.trace && span.name.contains("RUN echo traced");
    collector.span("buildkitd", "the daemon's span of the step", step);

    assert_eq!(children(&over_tls, &whole), ["accept", "place", "relay"]);
    let place = over_tls.span(PROXY, "the placement", |span| span.name == "place");
    assert_eq!(children(&over_tls, &place), ["connect"]);
    let record = proxy.records("build ended").remove(0);
    for (attribute, expected) in [
        ("buildkit_lb.ref", record["ref"].clone()),
        ("buildkit_lb.backend", json!("d0")),
        ("buildkit_lb.pool", json!("default")),
        ("buildkit_lb.outcome", record["outcome"].clone()),
        ("rpc.system", json!("grpc")),
        ("rpc.grpc.status_code", json!("0")),
        ("client.address", json!("127.0.0.1")),
    ] {
        assert_eq!(whole.attributes[attribute], expected, "{attribute}");
    }
    assert_eq!(whole.resource["k8s.pod.name"], "proxy-0");
    let connect = over_tls.span(PROXY, "the connection", |span| span.name == "connect");
    assert_eq!(connect.attributes["server.address"], "127.0.0.1");
    assert!(daemon.addr().ends_with(connect.attributes["server.port"].as_str().expect("a port")));
    let relay = over_tls.span(PROXY, "the relay", |span| span.name == "relay");
    assert!(place.end <= relay.start && relay.end <= whole.end, "{place:?} {relay:?} {whole:?}");
}

#[test]
fn the_span_of_a_wait_is_as_long_as_the_wait() {
    let collector = Collector::start();
    let daemon = Buildkitd::start("d0");
    let proxy = Proxy::in_front_of([&daemon])
        .args(&["--otlp-endpoint", &collector.endpoint(), "--max-builds", "1"])
        .start();
    let context = Context::busybox("RUN sleep 5432");
    let first = Running::new(&mut buildctl_build(&proxy.addr(), &context));
    eventually("the first build runs", WAIT, || is_running("sleep 5432").then_some(()));
    let context = Context::busybox("RUN echo waited");
    let second = Running::new(&mut buildctl_build(&proxy.addr(), &context));
    eventually("the second build has waited", WAIT, || {
        (proxy.status()["queue"][0]["seconds"].as_u64()? >= 2).then_some(())
    });
    drop(first);
    second.succeeds();

    let wait = collector.span(PROXY, "the wait", |span| span.name == "wait");
    assert_eq!(wait.attributes["buildkit_lb.queue_cause"], "busy");
    let records = proxy.records("build ended");
    let waited = |code: &str| {
        records
            .iter()
            .find(|record| record["code"] == code && record["key"] != json!(null))
            .cloned()
    };
    let ended = waited("OK").expect("a record");
    let told = ended["queue_wait_ms"].as_u64().expect("a number");
    // The record counts the tries before and after the wait, too.
    assert!(wait.millis() >= 2000 && wait.millis() <= told + 1, "{wait:?} {ended}");
    assert!(told - wait.millis() < told / 2, "{wait:?} {ended}");
    let of = |reference: &str| {
        let span = |span: &Span| span.attributes.get("buildkit_lb.ref") == Some(&json!(reference));
        collector.span(PROXY, "a whole build", span)
    };
    let whole = of(ended["ref"].as_str().expect("a ref"));
    let place = collector.span(PROXY, "the placement", |span| span.id == wait.parent);
    assert_eq!((&wait.trace, &place.parent), (&whole.trace, &whole.id));
    let cancelled = of(waited("Cancelled").expect("a record")["ref"].as_str().expect("a ref"));
    assert_eq!(cancelled.attributes["rpc.grpc.status_code"], "1");
    assert!(wait.start < cancelled.end && cancelled.end <= wait.end, "{cancelled:?} {wait:?}");
}

#[test]
fn a_trace_that_its_client_does_not_record_has_no_spans_and_a_drain_exports_the_last_ones() {
    let collector = Collector::start();
    let daemon = Buildkitd::start("d0");
    let builder = Proxy::in_front_of([&daemon]);
    let mut proxy = builder.args(&["--otlp-endpoint", &collector.endpoint()]).start();
    let context = Context::busybox("RUN echo sampled");
    for parent in [UNRECORDED, RECORDED] {
        succeed(buildctl_build(&proxy.addr(), &context).env("TRACEPARENT", parent));
    }
    // The last spans wait for others while the proxy is told to end.
    proxy.process.signal("TERM");
    proxy.process.wait(WAIT);
    let traces: Vec<_> = collector.spans(PROXY).into_iter().map(|span| span.trace).collect();
    assert!(
        !traces.is_empty() && traces.iter().all(|trace| RECORDED.contains(trace)),
        "{traces:?}"
    );
    let whole = collector.span(PROXY, "the whole build", |span| span.name == "build");
    assert_eq!(children(&collector, &whole), ["accept", "place", "relay"]);
}
