//! The kinds of the proxy's own errors.

use crate::label::label_set;

label_set! {
    /// The kinds of [`super::ProxyError`]: the value of [`super::MARKER`], and the `reason` of metrics and logs.
    ///
    /// `docs/errors.md` says of each what happened and what to do.
    #[allow(missing_docs, reason = "docs/errors.md has a row for each")]
    pub enum ErrorReason {
        NoBackend = "no_backend",
        WaitedOut = "waited_out",
        QueueFull = "queue_full",
        Draining = "draining",
        Connect = "connect",
        BackendLost = "backend_lost",
        Shortage = "shortage",
        BadAnswer = "bad_answer",
        AnswerTooLarge = "answer_too_large",
        BackendDeparted = "backend_departed",
        Incomplete = "incomplete",
        TooOld = "too_old",
        UnknownBuild = "unknown_build",
        UnknownContent = "unknown_content",
        BadMessage = "bad_message",
        MessageTooLarge = "message_too_large",
        MessageTimeout = "message_timeout",
        SessionOpen = "session_open",
        RefTaken = "ref_taken",
        NoSession = "no_session",
        Unauthenticated = "unauthenticated",
        Denied = "denied",
        TooManyBuilds = "too_many_builds",
        Parked = "parked",
        TooManyConnections = "too_many_connections",
        TooManyCalls = "too_many_calls",
        Memory = "memory",
        Limit = "limit",
    }
}
