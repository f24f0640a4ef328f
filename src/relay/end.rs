//! How a stream ended, and who is told.

use std::fmt;

use tonic::Code;

use crate::error::ProxyError;

/// How a stream ended, seen from its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The daemon ended the stream, with this code if it sent one.
    Finished(Option<Code>),
    /// The daemon reset the stream.
    DaemonReset,
    /// The connection to the daemon broke.
    BackendLost,
    /// The proxy ended the stream with an error of its own, which has this code.
    Refused(Code),
    /// The client went away or cancelled.
    ClientGone,
}

impl End {
    /// The end of a stream that the proxy answers with `error` instead of a daemon's answer.
    pub fn of(error: &ProxyError) -> Self {
        match error {
            ProxyError::Connect { .. } | ProxyError::BackendLost { .. } => Self::BackendLost,
            error => Self::Refused(error.code()),
        }
    }

    /// The gRPC code that the client got, or would have got.
    pub fn code(self) -> Code {
        match self {
            Self::Finished(code) => code.unwrap_or(Code::Unknown),
            Self::DaemonReset => Code::Internal,
            Self::BackendLost => Code::Unavailable,
            Self::Refused(code) => code,
            Self::ClientGone => Code::Cancelled,
        }
    }
}

/// Calls back exactly once when a stream ends, however it ends.
pub struct OnEnd(Option<Box<dyn FnOnce(End) + Send>>);

impl OnEnd {
    /// Calls `callback` at the end.
    pub fn new(callback: impl FnOnce(End) + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }

    /// Reports the end. Later reports do nothing.
    pub fn fire(&mut self, end: End) {
        if let Some(callback) = self.0.take() {
            callback(end);
        }
    }
}

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.fire(End::ClientGone);
    }
}

impl fmt::Debug for OnEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnEnd").field(&self.0.is_some()).finish()
    }
}
