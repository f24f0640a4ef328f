//! Ends the other calls of a refused Solve, so that the client prints the error of the Solve.
//!
//! A client would print an error of Status instead. A Session must wait for the client's half-close, because a client
//! hangs if the stream ends before that.

use http_body_util::BodyExt as _;

use crate::{
    call::CallResult,
    error::{ProxyError, ok_response},
    received::Received,
};

/// Reads a Session until the client half-closes it, then ends it with OK.
pub(super) async fn session(mut body: Received, error: ProxyError) -> CallResult {
    if !error.is_of_solve() {
        return Err(error.into());
    }
    while let Some(Ok(_frame)) = body.frame().await {}
    Ok(ok_response())
}

/// Ends a Status with OK if the client gets the error from its Solve.
pub(super) fn status(error: ProxyError) -> CallResult {
    if error.is_of_solve() { Ok(ok_response()) } else { Err(error.into()) }
}
