//! The proxy's own spans of builds, which it exports over OTLP.
//!
//! BuildKit's clients and daemons trace every build. The proxy adds spans of its own to the client's trace, so that a
//! wait in the queue stands beside the steps of the build. This module knows nothing of builds: it makes spans, and
//! `export` sends them to a collector. Without an endpoint there are no [`Traces`].

mod export;

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::HeaderMap;
pub use opentelemetry::trace::SpanKind;
use opentelemetry::{
    Context, Key, KeyValue, Value,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanBuilder, Status, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithTonicConfig as _,
    tonic_types::transport::{Certificate, ClientTlsConfig, Identity},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider, SpanExporter as _},
};
use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::export::Exports;
use crate::{address::Address, metrics::Families};

/// The name of the service in all spans, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` says otherwise.
const SERVICE: &str = "buildkit-lb";

/// How long the end of the proxy waits for its last spans to be exported.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// The longest `tracestate` that is kept: W3C Trace Context asks for at least this many bytes. Each span that waits to
/// be exported has a copy.
const MAX_STATE_LEN: usize = 512;

/// Where spans are exported to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The collector, as `http://HOST:PORT`, or `https://HOST:PORT` for TLS.
    pub endpoint: String,
    /// A file with the CA certificates that sign the collector's; `None` for those of the system.
    pub ca: Option<PathBuf>,
    /// The files with the proxy's own certificate and its key, for a collector that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why spans cannot be exported at all.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A file with certificates or a key cannot be read.
    #[error("read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The endpoint or the `OTEL_…` variables cannot be used.
    #[error("prepare the export of spans")]
    Exporter(#[from] ExporterBuildError),
}

/// Makes spans and exports them. Clones share the queue of spans.
#[derive(Debug, Clone)]
pub struct Traces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tracer: SdkTracer,
    /// Cancelled when nothing more is exported after what is in the queue.
    closing: CancellationToken,
    exporting: Mutex<Option<JoinHandle<()>>>,
}

impl Traces {
    /// Starts to export to `config.endpoint` on `tasks`. The collector need not be there yet.
    ///
    /// # Errors
    /// A file cannot be read, or the endpoint cannot be used.
    pub fn start(
        config: &Config,
        families: &Arc<Families>,
        tasks: &TaskTracker,
    ) -> Result<Self, TracesError> {
        let mut exporter =
            SpanExporter::builder().with_tonic().with_endpoint(config.endpoint.as_str());
        if config.endpoint.starts_with("https:") {
            exporter = exporter.with_tls_config(tls(config)?);
        }
        let mut exporter = exporter.build()?;
        let resource = resource();
        exporter.set_resource(&resource);
        let (queue, exports) = Exports::new(families);
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_span_processor(queue).build();
        let closing = CancellationToken::new();
        let exporting = tasks.spawn(exports.run(exporter, closing.clone()));
        let tracer = provider.tracer(SERVICE);
        Ok(Self(Arc::new(Inner { tracer, closing, exporting: Mutex::new(Some(exporting)) })))
    }

    /// A span that `arrived` then with the metadata `headers`, as a child of the client's span that they name. `None` if
    /// the client does not record its trace.
    pub fn arrival(
        &self,
        name: &'static str,
        headers: &HeaderMap,
        arrived: Instant,
    ) -> Option<Span> {
        let context =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &Metadata(headers));
        let span = Span::start(&self.0, name, SpanKind::Server, &context, at(arrived));
        span.context.span().is_recording().then_some(span)
    }

    /// Exports the spans that wait, and no more after them. Gives up after some seconds.
    pub async fn close(&self) {
        self.0.closing.cancel();
        let exporting = self.0.exporting.lock().take();
        if let Some(exporting) = exporting {
            let _ = timeout(FLUSH_LIMIT, exporting).await;
        }
    }
}

/// One span. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    traces: Arc<Inner>,
    context: Context,
}

impl Span {
    fn start(
        traces: &Arc<Inner>,
        name: &'static str,
        kind: SpanKind,
        parent: &Context,
        at: SystemTime,
    ) -> Self {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(at);
        let span = traces.tracer.build_with_context(builder, parent);
        Self { traces: Arc::clone(traces), context: parent.with_span(span) }
    }

    /// A span that is a part of this one and begins now.
    pub fn child(&self, name: &'static str, kind: SpanKind) -> Self {
        Self::start(&self.traces, name, kind, &self.context, SystemTime::now())
    }

    /// A part of this span that began at `since`.
    pub fn child_since(&self, name: &'static str, since: Instant) -> Self {
        Self::start(&self.traces, name, SpanKind::Internal, &self.context, at(since))
    }

    /// Adds an attribute.
    pub fn set(&self, key: impl Into<Key>, value: impl Into<Value>) {
        self.context.span().set_attribute(KeyValue::new(key, value));
    }

    /// Notes which server the span is about.
    pub fn set_server(&self, address: &Address) {
        match address {
            Address::Tcp { host, port } => {
                self.set("server.address", host.clone());
                self.set("server.port", i64::from(*port));
            }
            Address::Unix(path) => self.set("server.address", path.display().to_string()),
        }
    }

    /// Notes that what the span is about failed: `kind` is a word of a closed set, and `text` is for people.
    pub fn fail(&self, kind: &'static str, text: impl Into<Cow<'static, str>>) {
        self.set("error.type", kind);
        self.context.span().set_status(Status::error(text));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.context.span().end();
    }
}

/// The metadata of a call, of which only the trace is read.
struct Metadata<'a>(&'a HeaderMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        (value.len() <= MAX_STATE_LEN).then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        Vec::new()
    }
}

/// The time of day of a moment in the past.
fn at(moment: Instant) -> SystemTime {
    let now = SystemTime::now();
    now.checked_sub(moment.elapsed()).unwrap_or(now)
}

/// What all spans say of this process: the service's name and version, and what the `OTEL_…` variables say.
fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = Resource::builder().with_attribute(version.clone()).build();
    let name = resource.get(&Key::from_static_str("service.name"));
    // The library's own default begins with this word.
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return resource;
    }
    Resource::builder().with_attribute(version).with_service_name(SERVICE).build()
}

/// How the collector is reached over TLS.
fn tls(config: &Config) -> Result<ClientTlsConfig, TracesError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| TracesError::File { path: path.clone(), source })
    };
    let mut tls = ClientTlsConfig::new();
    tls = match &config.ca {
        Some(ca) => tls.ca_certificate(Certificate::from_pem(read(ca)?)),
        None => tls.with_native_roots(),
    };
    if let Some((certificate, key)) = &config.identity {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}
