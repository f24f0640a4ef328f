//! One call of a client, as the handlers take it, and what becomes of it.

use std::time::Instant;

use http::{Request, Response, request::Parts};

use crate::{
    client::Client,
    error::ProxyError,
    first_message::Unread,
    received::Received,
    relay::{Body, ResetError},
};

/// A call that has arrived: its headers are here, its body is yet to be read.
#[derive(Debug)]
pub struct Call {
    /// Path and metadata.
    pub parts: Parts,
    /// The messages to come.
    pub body: Received,
    /// Who calls.
    pub client: Client,
    /// When the call arrived.
    pub arrived: Instant,
}

impl Call {
    /// The call that `request` of `client` is; it arrives now.
    pub fn new(request: Request<Received>, client: Client) -> Self {
        let (parts, body) = request.into_parts();
        Self { parts, body, client, arrived: Instant::now() }
    }

    /// The request to send on.
    pub fn into_request(self) -> Request<Received> {
        Request::from_parts(self.parts, self.body)
    }
}

/// What becomes of a call: a daemon's response, or one that the proxy made.
pub type CallResult = Result<Response<Body>, CallError>;

/// Why a call gets no response of a daemon's.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The proxy answers with an error of its own.
    #[error(transparent)]
    Own(#[from] ProxyError),
    /// The daemon reset the stream: the client gets the same reset.
    #[error(transparent)]
    Reset(#[from] ResetError),
}

impl From<Unread> for CallError {
    fn from(unread: Unread) -> Self {
        Self::Own(unread.error)
    }
}
