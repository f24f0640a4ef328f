//! The spans of one build: its arrival, its placement, and its relay.

use std::time::Instant;

use tonic::Code;

use super::request::Solve;
use crate::{
    call::Call,
    error::ProxyError,
    metrics::code_name,
    proxy::Proxy,
    relay::End,
    running::RunningBuild,
    traces::{Span, SpanKind},
};

/// The span of a whole build. If the client gives up, the span ends as cancelled.
#[derive(Debug)]
pub(super) struct BuildTrace {
    build: Span,
    arrived: Instant,
    /// The span of what happens after the build has its backend.
    relay: Option<Span>,
    ended: bool,
}

impl BuildTrace {
    /// Begins the span of the build that `call` asks for. `None` if no spans are exported, or if the client does not
    /// record its trace.
    pub(super) fn begin(proxy: &Proxy, call: &Call) -> Option<Self> {
        let traces = proxy.traces.as_ref()?;
        let build = traces.arrival("build", &call.parts.headers, call.arrived)?;
        build.set("rpc.system", "grpc");
        build.set("rpc.service", "moby.buildkit.v1.Control");
        build.set("rpc.method", "Solve");
        build.set("buildkit_lb.pool", proxy.metrics.pool().to_owned());
        if let Some(address) = call.client.address {
            build.set("client.address", address.to_string());
        }
        if let Some(identity) = &call.client.identity {
            build.set("enduser.id", identity.to_string());
        }
        Some(Self { build, arrived: call.arrived, relay: None, ended: false })
    }

    /// The span of everything before the placement: the Solve is read, checked, and its key is made.
    pub(super) fn accept(&self) -> Span {
        self.build.child_since("accept", self.arrived)
    }

    /// The span of the placement of `solve`, which has been read.
    pub(super) fn place(&self, solve: &Solve) -> Span {
        if let Some(build) = &solve.build {
            self.build.set("buildkit_lb.ref", build.to_string());
        }
        if let Some(affinity) = &solve.affinity {
            self.build.set("buildkit_lb.key", affinity.key.to_string());
            self.build.set("buildkit_lb.key_source", affinity.source);
        }
        self.build.child("place", SpanKind::Internal)
    }

    /// Notes where the build runs from now on.
    pub(super) fn placed(&mut self, build: &RunningBuild) {
        self.build.set("buildkit_lb.outcome", build.decision.outcome.label());
        self.build.set("buildkit_lb.backend", build.backend.shared_name());
        self.build.set("buildkit_lb.probe", build.internal);
        if let Some(waited) = build.waited {
            self.build.set("buildkit_lb.queue_cause", waited.cause.label());
        }
        let relay = self.build.child("relay", SpanKind::Client);
        relay.set("buildkit_lb.backend", build.backend.shared_name());
        relay.set_server(build.backend.address());
        self.relay = Some(relay);
    }

    /// Ends the spans of a build that was refused.
    pub(super) fn refused(mut self, error: &ProxyError) {
        self.build.fail(error.reason().label(), error.to_string());
        self.end(error.code());
    }

    /// Ends the spans of a build that ran, and for which these bytes went up to the daemon and down from there.
    pub(super) fn ended(mut self, end: End, (up, down): (u64, u64)) {
        let bytes = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let code = end.code();
        if let Some(relay) = &self.relay {
            relay.set("buildkit_lb.bytes_up", bytes(up));
            relay.set("buildkit_lb.bytes_down", bytes(down));
            relay.set("rpc.grpc.status_code", i64::from(i32::from(code)));
        }
        if !matches!(code, Code::Ok) {
            let kind = code_name(code);
            self.relay.iter().chain([&self.build]).for_each(|span| span.fail(kind, ""));
        }
        self.end(code);
    }

    fn end(&mut self, code: Code) {
        self.build.set("rpc.grpc.status_code", i64::from(i32::from(code)));
        // A part does not end after the whole.
        drop(self.relay.take());
        self.ended = true;
    }
}

impl Drop for BuildTrace {
    fn drop(&mut self) {
        if !self.ended {
            self.build.fail("client_gone", "the client went away");
            self.end(Code::Cancelled);
        }
    }
}
