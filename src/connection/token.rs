//! Who a call is from, where its metadata says so with a token.
//!
//! Each call has its own, because an HTTP/2 hop sends the calls of many clients over one connection.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

use crate::{
    client::Client,
    error::ProxyError,
    identity::Identity,
    token::{ClientTokens, TokenFile, bearer},
};

/// Takes the header with the token out of `headers`, if there is one. Daemons have no use for it.
pub(super) fn take(headers: &mut HeaderMap) -> Option<Result<HeaderValue, ProxyError>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let first = values.next()?.clone();
    let only = values.next().is_none();
    headers.remove(AUTHORIZATION);
    Some(if only {
        Ok(first)
    } else {
        Err(ProxyError::Unauthenticated("the call has several headers `authorization`"))
    })
}

/// The client that has the token which a call of `client` shows.
///
/// # Errors
/// Nobody has it, or it came without TLS.
pub(super) async fn identify(
    tokens: &TokenFile<ClientTokens>,
    client: &Client,
    shown: Result<HeaderValue, ProxyError>,
) -> Result<Arc<Identity>, ProxyError> {
    let shown = shown?;
    if !client.secured {
        return Err(ProxyError::Unauthenticated(
            "a token is taken over TLS only: this one may have been read on its way, so replace it",
        ));
    }
    let token = bearer(shown.as_bytes()).ok_or(ProxyError::Unauthenticated(
        "the header `authorization` is not of the form `Bearer TOKEN`",
    ))?;
    let tokens = tokens.current().await;
    let owner = tokens.client(token).map(Arc::clone);
    owner.ok_or(ProxyError::Unauthenticated("no client has the token of this call"))
}
