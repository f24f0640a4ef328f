//! The reply of one daemon, message by message.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use tonic::Code;

use super::{
    ANSWER_TIMEOUT,
    charge::{OutOfMemory, ReplyCharge},
};
use crate::{
    error::{ProxyError, chain, status_code},
    fleet::Backend,
    metrics::code_name,
    received::Received,
    wire::{MAX_MESSAGE_LEN, MessageDecoder, WireError},
};

/// Why a backend is left out of an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplyError {
    #[error("no answer within {ANSWER_TIMEOUT:?}")]
    Timeout,
    #[error("{0}")]
    Unreachable(String),
    #[error("ended with {}", code_name(*.code))]
    Refused { code: Code, trailers: HeaderMap },
    #[error("its version would misunderstand the call")]
    TooOld,
    #[error("answer cannot be read")]
    Wire(#[from] WireError),
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl ReplyError {
    /// The trailers that tell a client about this failure: the daemon's own if it sent some.
    pub(super) fn trailers(self, backend: &Backend) -> HeaderMap {
        let error = match self {
            Self::Refused { trailers, .. } => return trailers,
            Self::OutOfMemory(_) => ProxyError::Limit(
                "answers that clients do not read take all the memory that answers may have",
            ),
            error => {
                let backend = backend.name().to_owned();
                ProxyError::Incomplete { backend, cause: chain(&error) }
            }
        };
        error.trailers()
    }
}

/// The reply of one backend, whose headers have come.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) backend: Arc<Backend>,
    pub(super) headers: HeaderMap,
    body: Received,
    trailers: Option<HeaderMap>,
    messages: MessageDecoder,
    held: ReplyCharge,
    handed_on: bool,
    /// How long the daemon may be silent; `None` if it waits for events.
    idle_timeout: Option<Duration>,
}

impl Reply {
    pub(super) fn new(
        backend: Arc<Backend>,
        response: Response<Received>,
        held: ReplyCharge,
        idle_timeout: Option<Duration>,
    ) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            backend,
            headers: parts.headers,
            body,
            trailers: None,
            messages: MessageDecoder::new(MAX_MESSAGE_LEN),
            held,
            handed_on: false,
            idle_timeout,
        }
    }

    /// The next message with its prefix, or `None` once the daemon has ended its reply well.
    ///
    /// At most one message is in memory here. If the future is dropped, what has been read is kept.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ReplyError> {
        if std::mem::take(&mut self.handed_on) {
            self.held.hand_on();
        }
        loop {
            if let Some(len) = self.messages.announced()? {
                self.held.hold(len).await?;
                if let Some(message) = self.messages.next_message()? {
                    self.handed_on = true;
                    return Ok(Some(message));
                }
            }
            let frame = match self.idle_timeout {
                Some(idle_timeout) => timeout(idle_timeout, self.body.frame()).await,
                None => Ok(self.body.frame().await),
            };
            let frame = frame.map_err(|_elapsed| self.silent())?;
            let Some(frame) = frame else { return self.end() };
            let frame = frame.map_err(|error| ReplyError::Unreachable(chain(&error)))?;
            match frame.into_data() {
                Ok(data) => self.messages.push(&data),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    /// Completes when a client that holds less got the memory of this reply.
    pub(super) async fn evicted(&mut self) {
        self.held.evicted().await;
    }

    fn silent(&self) -> ReplyError {
        self.backend.report_silence();
        ReplyError::Timeout
    }

    fn end(&mut self) -> Result<Option<Bytes>, ReplyError> {
        // A reply without messages may consist of headers alone.
        let mut trailers = self.trailers.take().unwrap_or_else(|| self.headers.clone());
        trailers.remove(CONTENT_TYPE);
        match status_code(&trailers) {
            Some(Code::Ok) => Ok(None),
            code => Err(ReplyError::Refused { code: code.unwrap_or(Code::Unknown), trailers }),
        }
    }
}
