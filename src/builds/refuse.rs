//! Ends the siblings of a Solve that was refused, so that the client prints the Solve's error.
//!
//! An error on Status would be printed instead of the Solve's, and a Session must take the client's
//! half-close, or the client hangs in closing it.

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

/// Ends a Status with OK if its Solve has told the error.
pub(super) fn status(error: ProxyError) -> CallResult {
    if error.is_of_solve() { Ok(ok_response()) } else { Err(error.into()) }
}
