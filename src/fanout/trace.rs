//! Trace export: spans go to the daemon that runs the build they belong to.

use http::Request;
use hyper::body::Incoming;

use crate::{
    ids::Key,
    proxy::{self, Proxy},
    wire::{self, trace::ExportTraceServiceRequest},
};

/// TraceService/Export: by the first span's trace id; to any daemon if that is unknown.
///
/// # Errors
/// The daemon reset the stream.
pub async fn export(proxy: &Proxy, request: Request<Incoming>) -> proxy::Answer {
    let (parts, body) = request.into_parts();
    let (message, rest) = match proxy.read_message(body).await {
        Ok(read) => read,
        Err(error) => return Ok(proxy.reject(&error)),
    };
    let export: ExportTraceServiceRequest = wire::decode(&message.framed()).unwrap_or_default();
    let spans = export.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    let trace = spans
        .flat_map(|scope| &scope.spans)
        .find_map(|span| <[u8; 16]>::try_from(&span.trace_id[..]).ok());
    let known = trace.and_then(|trace| proxy.known_link(&Key::Trace(trace)).ok().flatten());
    match known {
        Some((link, _tally)) => proxy.relay_call(&link, parts, message.into_bytes(), rest).await,
        None => proxy.relay_to_any(parts, message.into_bytes(), rest).await,
    }
}
