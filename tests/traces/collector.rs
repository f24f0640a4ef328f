//! A real collector of OpenTelemetry, and the spans that it has received.

use std::{fs, net::TcpStream, path::Path, time::Duration};

use serde_json::{Map, Value, json};

use crate::support::{child::Guarded, eventually, free_port, tools::tool};

/// How long a busy machine may take until a span has arrived.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// A running collector.
pub(crate) struct Collector {
    port: u16,
    directory: tempfile::TempDir,
    _process: Guarded,
}

/// A span as the collector received it.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    /// The service that the span is from.
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// The id of the parent; empty if there is none.
    pub(crate) parent: String,
    /// Nanoseconds since 1970.
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) attributes: Map<String, Value>,
    pub(crate) resource: Map<String, Value>,
}

impl Span {
    /// The duration in milliseconds.
    pub(crate) fn millis(&self) -> u64 {
        (self.end - self.start) / 1_000_000
    }
}

impl Collector {
    /// Starts a collector without TLS.
    pub(crate) fn start() -> Self {
        Self::start_at(free_port(), &json!({}))
    }

    /// Starts a collector that shows the certificate in `own`, and demands one of the same authority from its clients.
    pub(crate) fn start_tls(own: &Path) -> Self {
        let file = |name: &str| own.join(name).display().to_string();
        let tls = json!({
            "cert_file": file("cert.pem"), "key_file": file("key.pem"), "client_ca_file": file("ca.pem"),
        });
        Self::start_at(free_port(), &json!({ "tls": tls }))
    }

    /// Starts a collector on this port with further settings of its receiver.
    pub(crate) fn start_at(port: u16, settings: &Value) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let mut grpc = settings.clone();
        grpc["endpoint"] = json!(format!("127.0.0.1:{port}"));
        let config = json!({
            "receivers": {"otlp": {"protocols": {"grpc": grpc}}},
            "exporters": {"lines": {"path": path("spans")}},
            "service": {
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["lines"]}},
                "telemetry": {"metrics": {"level": "none"}},
            },
        });
        fs::write(path("config.yaml"), config.to_string()).expect("written");
        let process = Guarded::start(&tool("collector"), &["--config", &path("config.yaml")]);
        eventually("the collector listens", WAIT, || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { port, directory, _process: process }
    }

    /// The endpoint as `OTEL_EXPORTER_OTLP_ENDPOINT` has it.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port on which the collector listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The spans of `service` that have arrived.
    pub(crate) fn spans(&self, service: &str) -> Vec<Span> {
        let text = fs::read_to_string(self.directory.path().join("spans")).unwrap_or_default();
        // The last line may be half written.
        let batches = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let all = batches.flat_map(|batch| {
            list(&batch["resourceSpans"]).iter().flat_map(of_resource).collect::<Vec<_>>()
        });
        all.filter(|span| span.service == service).collect()
    }

    /// Waits for the first span of `service` that is `wanted`.
    pub(crate) fn span(&self, service: &str, what: &str, wanted: impl Fn(&Span) -> bool) -> Span {
        eventually(what, WAIT, || self.spans(service).into_iter().find(&wanted))
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn of_resource(batch: &Value) -> Vec<Span> {
    let resource = attributes(&batch["resource"]["attributes"]);
    let service = resource["service.name"].as_str().expect("a name").to_owned();
    let spans = list(&batch["scopeSpans"]).iter().flat_map(|scope| list(&scope["spans"]));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let time = |value: &Value| text(value).parse().expect("nanoseconds");
    let span = |span: &Value| Span {
        service: service.clone(),
        name: text(&span["name"]),
        trace: text(&span["traceId"]),
        id: text(&span["spanId"]),
        parent: text(&span["parentSpanId"]),
        start: time(&span["startTimeUnixNano"]),
        end: time(&span["endTimeUnixNano"]),
        attributes: attributes(&span["attributes"]),
        resource: resource.clone(),
    };
    spans.map(span).collect()
}

/// The attributes as plain values. A number is text there.
fn attributes(value: &Value) -> Map<String, Value> {
    let plain = |value: &Value| value.as_object().and_then(|kinds| kinds.values().next().cloned());
    let attributes = list(value).iter();
    attributes
        .filter_map(|one| Some((one["key"].as_str()?.to_owned(), plain(&one["value"])?)))
        .collect()
}
