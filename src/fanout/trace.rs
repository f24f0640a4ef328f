//! Trace export: spans go to the daemon that runs their build.

use crate::{
    call::{Call, CallResult},
    ids::{BindingKey, TraceId},
    proxy::Proxy,
    wire::fields::{Fields, Malformed, Value},
};

/// Relays TraceService/Export to the daemon of the first span's trace, or to any daemon if the trace is unknown.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn export(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, rest) = proxy.read_message(&parts, &client, body).await?;
    let trace = message.read(first_trace).await.ok().flatten();
    let trace = trace.map(|trace| TraceId::new(trace, client.identity.as_ref()));
    // Many builds may share one trace. Those on the caller's own connection come first.
    let keys = trace.map(|trace| {
        [BindingKey::TraceOnConnection(trace, client.connection), BindingKey::Trace(trace)]
    });
    let known = keys
        .iter()
        .flatten()
        .find_map(|key| proxy.known_link(key, &client, &parts.headers).ok().flatten());
    match known {
        Some((link, _byte_counts)) => {
            proxy.relay_call(&link, parts, message.into_bytes(), rest).await
        }
        None => proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await,
    }
}

/// The trace id of the first span that has one.
///
/// The field numbers are those of opentelemetry-proto collector/trace/v1/trace_service.proto and trace/v1/trace.proto.
fn first_trace(export: &[u8]) -> Result<Option<[u8; 16]>, Malformed> {
    /// ExportTraceServiceRequest.resource_spans, ResourceSpans.scope_spans, ScopeSpans.spans, Span.trace_id.
    const PATH: [u32; 4] = [1, 2, 2, 1];
    fn find(message: &[u8], path: &[u32]) -> Result<Option<[u8; 16]>, Malformed> {
        let Some((number, deeper)) = path.split_first() else {
            return Ok(message.try_into().ok());
        };
        for field in Fields::new(message) {
            if let (at, Value::Bytes(inner)) = field?
                && at == *number
                && let Some(trace) = find(inner, deeper)?
            {
                return Ok(Some(trace));
            }
        }
        Ok(None)
    }
    find(export, &PATH)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `inner` as field `number` of a message.
    fn within(number: u8, inner: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(inner.len()).expect("short")], inner].concat()
    }

    #[test]
    fn the_first_span_with_a_trace_id_tells() {
        let span = |id: &[u8]| within(2, &within(1, id));
        let spans = [span(b""), span(&[7; 16]), span(&[8; 16])].concat();
        let export = [within(1, &[]), within(1, &within(2, &spans))].concat();
        assert_eq!(first_trace(&export), Ok(Some([7; 16])));
        assert_eq!(first_trace(&within(1, &within(2, &span(b"short")))), Ok(None));
        assert_eq!(first_trace(&[]), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(export: Vec<u8>) {
            let _ = first_trace(&export);
        }
    }
}
