//! Ends the siblings of a Solve that was refused, so that the client prints the Solve's error.
//!
//! An error on Status would be printed instead of the Solve's, and a Session must take the client's
//! half-close, or the client hangs in closing it.

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::{
    error::{ProxyError, ok_response},
    proxy::Proxy,
    relay::Body,
};

/// Reads a Session until the client half-closes it, then ends it with OK.
pub(super) async fn session(
    proxy: &Proxy,
    request: Request<Incoming>,
    error: &ProxyError,
) -> Response<Body> {
    if !matches!(error, ProxyError::NoBackend(_)) {
        return proxy.reject(error);
    }
    let mut body = request.into_body();
    while let Some(Ok(_frame)) = body.frame().await {}
    ok_response()
}

/// Ends a Status with OK if its Solve has told the error.
pub(super) fn status(proxy: &Proxy, error: &ProxyError) -> Response<Body> {
    match error {
        ProxyError::NoBackend(_) => ok_response(),
        error => proxy.reject(error),
    }
}
