//! A call of a client as handlers get it, and its result.

use std::time::Instant;

use http::{Request, Response, request::Parts};

use crate::{
    client::Client,
    error::ProxyError,
    first_message::Unread,
    received::Received,
    relay::{Body, ResetError},
};

/// A call whose headers have arrived, and whose body has not been read.
#[derive(Debug)]
pub struct Call {
    /// The path and the metadata.
    pub parts: Parts,
    /// The messages of the client, which are still to come.
    pub body: Received,
    /// The client that sent the call.
    pub client: Client,
    /// When the headers arrived.
    pub arrived: Instant,
}

impl Call {
    /// The call that `client` sends with `request`, which has `arrived` then.
    pub fn new(request: Request<Received>, client: Client, arrived: Instant) -> Self {
        let (parts, body) = request.into_parts();
        Self { parts, body, client, arrived }
    }

    /// The request, to be sent on to a daemon.
    pub fn into_request(self) -> Request<Received> {
        Request::from_parts(self.parts, self.body)
    }
}

/// The result of a call: the response of a daemon or of the proxy, or why there is none.
pub type CallResult = Result<Response<Body>, CallError>;

/// Why a call gets no response of a daemon.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The proxy answers with its own error.
    #[error(transparent)]
    Own(#[from] ProxyError),
    /// The daemon reset the stream, so the client gets the same reset.
    #[error(transparent)]
    Reset(#[from] ResetError),
}

impl From<Unread> for CallError {
    fn from(unread: Unread) -> Self {
        Self::Own(unread.error)
    }
}
