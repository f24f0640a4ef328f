//! The spans of a placement: of each wait for a turn, and of each try to reach a backend.

use super::Wish;
use crate::{
    directory::Cause,
    error::ProxyError,
    fleet::Backend,
    traces::{Span, SpanKind},
};

/// The span of one step of a placement. It holds nothing if the build is not traced.
#[derive(Debug, Default)]
pub(super) struct Step(Option<Span>);

impl Step {
    /// A wait for `cause` begins.
    pub(super) fn wait(wish: &Wish, cause: Cause) -> Self {
        let span = wish.span.as_ref().map(|place| place.child("wait", SpanKind::Internal));
        if let Some(wait) = &span {
            wait.set("buildkit_lb.queue_cause", cause.label());
        }
        Self(span)
    }

    /// A try to reach `backend` begins.
    pub(super) fn connect(wish: &Wish, backend: &Backend) -> Self {
        let span = wish.span.as_ref().map(|place| place.child("connect", SpanKind::Client));
        if let Some(connect) = &span {
            connect.set("buildkit_lb.backend", backend.shared_name());
            connect.set_server(backend.address());
        }
        Self(span)
    }

    /// Notes that the step did not succeed.
    pub(super) fn failed(&self, error: &ProxyError) {
        if let Some(span) = &self.0 {
            span.fail(error.reason().label(), error.to_string());
        }
    }

    /// Notes that the step took longer than it may.
    pub(super) fn timed_out(&self) {
        if let Some(span) = &self.0 {
            span.fail("timeout", "");
        }
    }
}
