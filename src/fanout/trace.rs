//! Trace export: spans go to the daemon that runs the build they belong to.

use crate::{
    call::{Call, CallResult},
    ids::Key,
    proxy::Proxy,
    wire::{self, trace::ExportTraceServiceRequest},
};

/// TraceService/Export: by the first span's trace id; to any daemon if that is unknown.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn export(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, .. } = call;
    let (message, rest) = proxy.read_message(body).await?;
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
