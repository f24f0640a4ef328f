//! The proxy's own errors, and how a client sees them.
//!
//! A daemon's errors never come through here: they are relayed byte for byte. What does come through
//! is marked with [`MARKER`], so that the two can be told apart.

mod connection;
mod reason;

use std::{error::Error, fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tonic::Code;

pub use self::{
    connection::{ConnectionError, ConnectionErrorReason},
    reason::ErrorReason,
};
use crate::{
    access, connection_limit::TooManyConnections, http2_limits::TRAILER_LIST_LEN,
    shares::LimitReached, wire::WireError,
};

/// Header (or trailer) on every error that the proxy made itself; its value is [`ProxyError::reason`].
pub const MARKER: HeaderName = HeaderName::from_static("buildkit-lb-error");

/// What `grpc-message` must escape: all but printable ASCII, and the percent sign (gRPC over HTTP/2).
const MESSAGE_ESCAPES: &AsciiSet = &CONTROLS.add(b'%');

/// Why the proxy itself ended a stream.
///
/// Clonable: one refusal answers a build's Solve and all its siblings.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProxyError {
    /// No backend could take the build.
    #[error("no backend is available: {0}")]
    NoBackend(String),
    /// No backend took the build for as long as it may wait.
    #[error("no backend took the build within {}: {cause}", humantime::format_duration(*.waited))]
    WaitedOut {
        /// How long it waited.
        waited: Duration,
        /// What it waited for.
        cause: String,
    },
    /// As many builds wait as may.
    #[error("{0}")]
    QueueFull(String),
    /// The proxy ends, and the build had no backend yet.
    #[error("the proxy is about to end, and the build waited for a backend until now; try again")]
    Draining,
    /// The backend could not be reached, and the stream is bound to it.
    #[error("backend {backend} cannot be reached: {cause}")]
    Connect {
        /// Name of the backend.
        backend: String,
        /// The chain of causes.
        cause: String,
    },
    /// The connection to the backend broke while the stream was open.
    #[error("backend {backend} was lost: {cause}")]
    BackendLost {
        /// Name of the backend.
        backend: String,
        /// The chain of causes.
        cause: String,
    },
    /// The process or the machine has run out of what a connection takes: no fault of a backend.
    #[error("the proxy cannot open a connection: {cause}")]
    Shortage {
        /// The chain of causes.
        cause: String,
    },
    /// The HTTP/2 library took the daemon's answer for none, or for larger than it takes.
    #[error("the answer of backend {backend} cannot be relayed: {cause}")]
    BadAnswer {
        /// Name of the backend.
        backend: String,
        /// The chain of causes.
        cause: String,
    },
    /// The daemon's error details, or metadata, are larger than the proxy relays.
    #[error(
        "backend {backend} answered with {len} bytes of error details and metadata, \
         more than the {TRAILER_LIST_LEN} that are relayed"
    )]
    AnswerTooLarge {
        /// Name of the backend.
        backend: String,
        /// Their size as HTTP/2 counts it.
        len: usize,
    },
    /// The backend that holds the build has left the fleet.
    #[error("backend {backend}, which built {build}, has left the fleet")]
    BackendDeparted {
        /// Name of the backend.
        backend: String,
        /// Ref of the build.
        build: String,
    },
    /// No Solve with this ref came in time and no backend has it in its history.
    #[error("no such job {0}")]
    UnknownBuild(String),
    /// No daemon has this blob, or it is no part of the client's builds.
    #[error("content {0}: not found")]
    UnknownContent(String),
    /// A client's message cannot be read.
    #[error("the message of {method} cannot be read: {cause}")]
    BadMessage {
        /// The call's method.
        method: String,
        /// The chain of causes.
        cause: String,
    },
    /// A client's message is larger than a daemon accepts.
    #[error("the message of {method} is too large: {cause}")]
    MessageTooLarge {
        /// The call's method.
        method: String,
        /// How large, and the limit.
        cause: String,
    },
    /// A client's message did not arrive in time.
    #[error("the message of {method} did not arrive within {limit:?}")]
    MessageTimeout {
        /// The call's method.
        method: String,
        /// The time it had.
        limit: Duration,
    },
    /// A Session stream with this uuid is open; a second one would silently replace it in the daemon.
    #[error("session {0} is already open")]
    SessionOpen(String),
    /// A build with the same ref runs: a client gave one ref to several of its nodes.
    #[error(
        "build {build} is running already, and {cause}; where all nodes of a builder lead to one pool, \
         it needs one node only"
    )]
    RefTaken {
        /// The ref.
        build: String,
        /// What keeps the two from running side by side.
        cause: &'static str,
    },
    /// A Solve names a session that its client does not have.
    #[error("no active session for {0}: context deadline exceeded")]
    NoSession(String),
    /// A rule forbids it.
    #[error(transparent)]
    Denied(#[from] access::Denied),
    /// As many builds of the client run as may.
    #[error("{client} may run {most} builds at once, and so many run")]
    TooManyBuilds {
        /// Whose builds.
        client: String,
        /// How many.
        most: usize,
    },
    /// Its client has more calls that wait for their build than the others have.
    #[error("too many calls wait for their build: {0}")]
    Parked(LimitReached),
    /// A question to the whole fleet was not answered by one daemon, which could not be left out.
    #[error("the answer is without backend {backend}: {cause}")]
    Incomplete {
        /// Name of the backend.
        backend: String,
        /// The chain of causes.
        cause: String,
    },
    /// Daemons would misunderstand the call, because they are too old to know a part of it.
    #[error("not asked of {backends}: {cause}")]
    TooOld {
        /// Their names and versions.
        backends: String,
        /// What they do not know, and what they would do.
        cause: &'static str,
    },
    /// What waits to be sent on has all the memory it may have, and no client more of it than this one.
    #[error(
        "the proxy holds as much as it may of what waits to be sent on, and most of it is this client's"
    )]
    Memory,
    /// A limit that protects the proxy is reached.
    #[error("{0}")]
    Limit(&'static str),
    /// The proxy, or one address, has as many connections as it may have.
    #[error("{0}")]
    TooManyConnections(TooManyConnections),
}

impl ProxyError {
    /// The error for a message of `method` that `error` keeps from being read.
    pub fn unreadable(method: String, error: &WireError) -> Self {
        let cause = chain(error);
        match error {
            WireError::TooLarge { .. } => Self::MessageTooLarge { method, cause },
            _ => Self::BadMessage { method, cause },
        }
    }

    /// Whether it is a Solve's own: its client prints it, and the calls beside the Solve end quietly.
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

    /// The gRPC code a client gets. `Unavailable` only where trying again can help.
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
            Self::Denied(_) => Code::PermissionDenied,
            Self::SessionOpen(_) | Self::RefTaken { .. } => Code::AlreadyExists,
            Self::MessageTooLarge { .. }
            | Self::AnswerTooLarge { .. }
            | Self::Shortage { .. }
            | Self::Parked(_)
            | Self::QueueFull(_)
            | Self::TooManyBuilds { .. }
            | Self::TooManyConnections(_)
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
            Self::Denied(_) => ErrorReason::Denied,
            Self::TooManyBuilds { .. } => ErrorReason::TooManyBuilds,
            Self::Parked(_) => ErrorReason::Parked,
            Self::TooManyConnections(_) => ErrorReason::TooManyConnections,
            Self::Memory => ErrorReason::Memory,
            Self::Limit(_) => ErrorReason::Limit,
        }
    }

    /// The trailers that carry this error.
    pub fn trailers(&self) -> HeaderMap {
        let mut trailers = status_trailers(self.code(), &self.to_string());
        trailers.insert(MARKER, HeaderValue::from_static(self.reason().label()));
        trailers
    }

    /// A trailers-only response: headers that end the stream.
    pub fn response<B: Default>(&self) -> Response<B> {
        trailers_only(self.trailers())
    }
}

/// A trailers-only response that says OK.
pub fn ok_response<B: Default>() -> Response<B> {
    trailers_only(ok_trailers())
}

/// Trailers that say OK.
pub fn ok_trailers() -> HeaderMap {
    status_trailers(Code::Ok, "")
}

/// A response of nothing but `trailers`: headers that end the stream.
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

/// Reads `grpc-status` out of a daemon's headers or trailers.
pub fn status_code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// The first few of `items`, and how many more there are.
///
/// A fleet may have a thousand backends; a text is for a person, and an error that is longer than a
/// client's limit for metadata would be lost.
pub fn first_few<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    const FEW: usize = 5;
    let mut items = items.into_iter();
    let few: Vec<_> = items.by_ref().take(FEW).map(|item| item.to_string()).collect();
    match items.count() {
        0 => few.join(", "),
        more => format!("{} and {more} more", few.join(", ")),
    }
}

/// An error and all its causes on one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// [`Chain`] as a text.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    Chain(error).to_string()
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

    #[test]
    fn of_many_the_first_five_are_named() {
        assert_eq!(first_few(["a"]), "a");
        assert_eq!(first_few(1..=5), "1, 2, 3, 4, 5");
        assert_eq!(first_few(1..=500), "1, 2, 3, 4, 5 and 495 more");
    }

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = WireError::Compressed(std::io::Error::other("bad header"));
        assert_eq!(chain(&error), "compressed message cannot be read: bad header");
    }
}
