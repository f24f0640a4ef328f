//! The proxy's own errors, and how a client sees them.
//!
//! A daemon's errors never come through here: they are relayed byte for byte. Errors of the proxy are marked with
//! [`MARKER`], so that a client can tell the two apart.

mod connection;
mod reason;
mod text;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tonic::Code;

pub use self::{
    connection::{ConnectionError, ConnectionErrorReason},
    reason::ErrorReason,
    text::{Chain, chain, first_few},
};
use crate::{
    access, connection_limit::TooManyConnections, http2_limits::TRAILER_LIST_LEN,
    shares::LimitReached, wire::WireError,
};

/// The header or trailer on every error that the proxy made itself. Its value is [`ProxyError::reason`].
pub const MARKER: HeaderName = HeaderName::from_static("buildkit-lb-error");

/// The characters that `grpc-message` must escape: all but printable ASCII, and the percent sign (gRPC over
/// HTTP/2).
const MESSAGE_ESCAPES: &AsciiSet = &CONTROLS.add(b'%');

/// Why the proxy itself ended a stream.
///
/// It can be cloned, because one refusal answers the Solve of a build and all its siblings.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProxyError {
    /// No backend could take the build.
    #[error("no backend is available: {0}")]
    NoBackend(String),
    /// No backend took the build within the longest time that a build may wait.
    #[error("no backend took the build within {}: {cause}", humantime::format_duration(*.waited))]
    WaitedOut {
        /// How long the build waited.
        waited: Duration,
        /// What the build waited for.
        cause: String,
    },
    /// The queue is full. The text says whose limit is reached.
    #[error("{0}")]
    QueueFull(String),
    /// The proxy is about to end, and the build had no backend yet.
    #[error("the proxy is about to end, and the build waited for a backend until now; try again")]
    Draining,
    /// The stream is bound to a backend that cannot be reached.
    #[error("backend {backend} cannot be reached: {cause}")]
    Connect {
        /// The name of the backend.
        backend: String,
        /// The error with all its causes.
        cause: String,
    },
    /// The connection to the backend broke while the stream was open.
    #[error("backend {backend} was lost: {cause}")]
    BackendLost {
        /// The name of the backend.
        backend: String,
        /// The error with all its causes.
        cause: String,
    },
    /// The process or the machine has run out of descriptors, ports or memory for a connection. No backend is at
    /// fault.
    #[error("the proxy cannot open a connection: {cause}")]
    Shortage {
        /// The error with all its causes.
        cause: String,
    },
    /// The HTTP/2 library refuses the answer of the daemon: it is malformed, or too large.
    #[error("the answer of backend {backend} cannot be relayed: {cause}")]
    BadAnswer {
        /// The name of the backend.
        backend: String,
        /// The error with all its causes.
        cause: String,
    },
    /// The error details or metadata of the daemon are larger than the proxy relays.
    #[error(
        "backend {backend} answered with {len} bytes of error details and metadata, \
         more than the {TRAILER_LIST_LEN} that are relayed"
    )]
    AnswerTooLarge {
        /// The name of the backend.
        backend: String,
        /// The size of all headers, as HTTP/2 counts it.
        len: usize,
    },
    /// The backend that holds the build has left the fleet.
    #[error("backend {backend}, which built {build}, has left the fleet")]
    BackendDeparted {
        /// The name of the backend.
        backend: String,
        /// The ref of the build.
        build: String,
    },
    /// No Solve with this ref came in time, and no backend has the ref in its history.
    #[error("no such job {0}")]
    UnknownBuild(String),
    /// No daemon has this blob, or the blob belongs to none of the client's builds.
    #[error("content {0}: not found")]
    UnknownContent(String),
    /// A client's message cannot be read.
    #[error("the message of {method} cannot be read: {cause}")]
    BadMessage {
        /// The method of the call.
        method: String,
        /// The error with all its causes.
        cause: String,
    },
    /// A client's message is larger than a daemon accepts.
    #[error("the message of {method} is too large: {cause}")]
    MessageTooLarge {
        /// The method of the call.
        method: String,
        /// The size of the message, and the limit.
        cause: String,
    },
    /// A client's message did not arrive in time.
    #[error("the message of {method} did not arrive within {limit:?}")]
    MessageTimeout {
        /// The method of the call.
        method: String,
        /// How long the client had to send the message.
        limit: Duration,
    },
    /// A Session stream with this uuid is open. In the daemon, a second one would silently replace the first.
    #[error("session {0} is already open")]
    SessionOpen(String),
    /// A build with the same ref is running, because a client gave one ref to several of its nodes.
    #[error(
        "build {build} is already running, and {cause}; if all nodes of a builder lead to one pool, \
         the builder needs only one node"
    )]
    RefTaken {
        /// The ref of both builds.
        build: String,
        /// Why the two builds cannot run at the same time.
        cause: &'static str,
    },
    /// A Solve names a session that its client has not opened.
    #[error("no active session for {0}: context deadline exceeded")]
    NoSession(String),
    /// The call shows a token that gives no identity.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// An access rule forbids the call.
    #[error(transparent)]
    Denied(#[from] access::Denied),
    /// The client already runs as many builds as its access rule allows.
    #[error("{client} may run {most} builds at once, and already does")]
    TooManyBuilds {
        /// The name of the client.
        client: String,
        /// The number of builds that the rule allows.
        most: usize,
    },
    /// Too many calls wait for their build, and this client has most of them.
    #[error("too many calls wait for their build: {0}")]
    Parked(LimitReached),
    /// One daemon did not answer a question to the whole fleet, and the answer would be wrong without its part.
    #[error("the answer lacks the part of backend {backend}: {cause}")]
    Incomplete {
        /// The name of the backend.
        backend: String,
        /// The error with all its causes.
        cause: String,
    },
    /// Daemons would misunderstand the call, because they are too old to know a part of it.
    #[error("the call was not sent to {backends}: {cause}")]
    TooOld {
        /// The names and versions of these backends.
        backends: String,
        /// What the daemons do not know, and what they would do.
        cause: &'static str,
    },
    /// The data that waits to be sent on fills the memory budget, and this client holds most of it.
    #[error(
        "the memory for data that waits to be sent on is full, and this client holds most of it"
    )]
    Memory,
    /// A connection opens calls, or gives them up, faster than it may.
    #[error(
        "this connection {0} more than 1 000 calls a second; open fewer calls, or more connections"
    )]
    TooManyCalls(&'static str),
    /// A limit that protects the proxy is reached. The text names it.
    #[error("{0}")]
    Limit(&'static str),
    /// The proxy, or one address, has as many connections as the limit allows.
    #[error("{0}")]
    TooManyConnections(TooManyConnections),
}

impl ProxyError {
    /// The error for a message of `method` that cannot be read because of `error`.
    pub fn unreadable(method: String, error: &WireError) -> Self {
        let cause = chain(error);
        match error {
            WireError::TooLarge { .. } => Self::MessageTooLarge { method, cause },
            _ => Self::BadMessage { method, cause },
        }
    }

    /// Whether the error belongs to the Solve. The client prints the error of the Solve, so the siblings of the
    /// build end without one.
    pub fn is_of_solve(&self) -> bool {
        matches!(
            self,
            Self::NoBackend(_)
                | Self::WaitedOut { .. }
                | Self::QueueFull(_)
                | Self::Draining
                | Self::RefTaken { .. }
                | Self::NoSession(_)
                | Self::Denied(_)
                | Self::TooManyBuilds { .. }
                | Self::BadMessage { .. }
                | Self::MessageTooLarge { .. }
        )
    }

    /// The gRPC code for the client. `Unavailable` is used only where it can help to try again.
    pub fn code(&self) -> Code {
        match self {
            Self::NoBackend(_)
            | Self::WaitedOut { .. }
            | Self::Draining
            | Self::Connect { .. }
            | Self::BackendLost { .. }
            | Self::Incomplete { .. }
            | Self::BackendDeparted { .. } => Code::Unavailable,
            Self::TooOld { .. } => Code::FailedPrecondition,
            Self::UnknownBuild(_) | Self::UnknownContent(_) => Code::NotFound,
            Self::BadMessage { .. } => Code::InvalidArgument,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Denied(_) => Code::PermissionDenied,
            Self::SessionOpen(_) | Self::RefTaken { .. } => Code::AlreadyExists,
            Self::MessageTooLarge { .. }
            | Self::AnswerTooLarge { .. }
            | Self::Shortage { .. }
            | Self::Parked(_)
            | Self::QueueFull(_)
            | Self::TooManyBuilds { .. }
            | Self::TooManyConnections(_)
            | Self::TooManyCalls(_)
            | Self::Memory
            | Self::Limit(_) => Code::ResourceExhausted,
            Self::BadAnswer { .. } => Code::Internal,
            Self::MessageTimeout { .. } | Self::NoSession(_) => Code::DeadlineExceeded,
        }
    }

    /// The kind of the error, for the marker header, metrics and logs.
    pub fn reason(&self) -> ErrorReason {
        match self {
            Self::NoBackend(_) => ErrorReason::NoBackend,
            Self::WaitedOut { .. } => ErrorReason::WaitedOut,
            Self::QueueFull(_) => ErrorReason::QueueFull,
            Self::Draining => ErrorReason::Draining,
            Self::Connect { .. } => ErrorReason::Connect,
            Self::BackendLost { .. } => ErrorReason::BackendLost,
            Self::Shortage { .. } => ErrorReason::Shortage,
            Self::BadAnswer { .. } => ErrorReason::BadAnswer,
            Self::AnswerTooLarge { .. } => ErrorReason::AnswerTooLarge,
            Self::BackendDeparted { .. } => ErrorReason::BackendDeparted,
            Self::Incomplete { .. } => ErrorReason::Incomplete,
            Self::TooOld { .. } => ErrorReason::TooOld,
            Self::UnknownBuild(_) => ErrorReason::UnknownBuild,
            Self::UnknownContent(_) => ErrorReason::UnknownContent,
            Self::BadMessage { .. } => ErrorReason::BadMessage,
            Self::MessageTooLarge { .. } => ErrorReason::MessageTooLarge,
            Self::MessageTimeout { .. } => ErrorReason::MessageTimeout,
            Self::SessionOpen(_) => ErrorReason::SessionOpen,
            Self::RefTaken { .. } => ErrorReason::RefTaken,
            Self::NoSession(_) => ErrorReason::NoSession,
            Self::Unauthenticated(_) => ErrorReason::Unauthenticated,
            Self::Denied(_) => ErrorReason::Denied,
            Self::TooManyBuilds { .. } => ErrorReason::TooManyBuilds,
            Self::Parked(_) => ErrorReason::Parked,
            Self::TooManyConnections(_) => ErrorReason::TooManyConnections,
            Self::TooManyCalls(_) => ErrorReason::TooManyCalls,
            Self::Memory => ErrorReason::Memory,
            Self::Limit(_) => ErrorReason::Limit,
        }
    }

    /// The gRPC trailers that tell a client of this error.
    pub fn trailers(&self) -> HeaderMap {
        let mut trailers = status_trailers(self.code(), &self.to_string());
        trailers.insert(MARKER, HeaderValue::from_static(self.reason().label()));
        trailers
    }

    /// A response that has only headers, tells of this error and ends the stream.
    pub fn response<B: Default>(&self) -> Response<B> {
        trailers_only(self.trailers())
    }
}

/// A response that has only headers, says OK and ends the stream.
pub fn ok_response<B: Default>() -> Response<B> {
    trailers_only(ok_trailers())
}

/// The gRPC trailers of a call that succeeded.
pub fn ok_trailers() -> HeaderMap {
    status_trailers(Code::Ok, "")
}

/// A response that has only headers, which are `trailers`, and ends the stream.
pub fn trailers_only<B: Default>(trailers: HeaderMap) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.headers_mut() = trailers;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn status_trailers(code: Code, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code as i32));
    if !message.is_empty() {
        let escaped = utf8_percent_encode(message, MESSAGE_ESCAPES).to_string();
        if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(escaped)) {
            trailers.insert("grpc-message", value);
        }
    }
    trailers
}

/// Reads `grpc-status` from the headers or trailers of a daemon. `None` if there is none.
pub fn status_code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_marked_trailers_only_response() {
        let error = ProxyError::Connect { backend: "b-0".into(), cause: "100% gone\n".into() };
        let response: Response<Bytes> = error.response();
        let header = |name| response.headers()[name].to_str().expect("ASCII");
        assert_eq!(header("grpc-status"), "14");
        assert_eq!(header("grpc-message"), "backend b-0 cannot be reached: 100%25 gone%0A");
        assert_eq!(header("buildkit-lb-error"), "connect");
        assert_eq!(header("content-type"), "application/grpc");
    }
}
