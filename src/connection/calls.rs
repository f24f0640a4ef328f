//! Passes each call of a connection to its handler.

use std::{sync::Arc, time::Instant};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use http::Request;

use super::{metadata::Charged, pace::Pace, token};
use crate::{
    access::{Denied, Grant, Reach, denied},
    builds,
    call::{Call, CallResult},
    client::Client,
    error::ProxyError,
    fanout,
    http2_limits::{HEADER_LIST_LEN, header_list_len},
    proxy::Proxy,
    received::Received,
    router::{self, Method, Needs, Route},
};

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) proxy: Arc<Proxy>,
    pub(super) client: Client,
    /// The answer to every call, if the connection has no permit.
    refused: Option<ProxyError>,
    /// Limits how fast the client may open calls and cancel them.
    pub(super) pace: Arc<Pace>,
}

impl Calls {
    /// The calls of `client`. If there is `refused`, it is the answer to all of them.
    pub(super) fn new(proxy: Arc<Proxy>, client: Client, refused: Option<ProxyError>) -> Self {
        Self { proxy, client, refused, pace: Arc::new(Pace::new(Instant::now())) }
    }

    /// The future of one call, which ends with the answer.
    pub(super) fn handle(&self, request: Request<Received>) -> BoxFuture<'static, CallResult> {
        let (method, now) = (router::method(request.uri().path()), Instant::now());
        let admitted = match &self.refused {
            Some(error) => Err(error.clone()),
            None => self.pace.open(method.is_of_frontend(), now),
        };
        match admitted {
            Ok(()) => {
                let call = Call::new(request, self.client.clone(), now);
                identify(Arc::clone(&self.proxy), method, call)
            }
            Err(error) => ready(Err(error.into())).boxed(),
        }
    }
}

/// Gives a call with a token the identity of that token. Other calls keep the identity of the connection's client.
fn identify(
    proxy: Arc<Proxy>,
    method: &'static Method,
    mut call: Call,
) -> BoxFuture<'static, CallResult> {
    let Some(tokens) = &proxy.tokens else { return handle(proxy, method, call) };
    let Some(shown) = token::take(&mut call.parts.headers) else {
        return handle(proxy, method, call);
    };
    let tokens = Arc::clone(tokens);
    async move {
        call.client.identity = Some(token::identify(&tokens, &call.client, shown).await?);
        handle(proxy, method, call).await
    }
    .boxed()
}

/// Boxed, so that an open stream keeps only the future of its own handler, and only until the answer begins.
fn handle(
    proxy: Arc<Proxy>,
    method: &'static Method,
    mut call: Call,
) -> BoxFuture<'static, CallResult> {
    if header_list_len(&call.parts.headers) > HEADER_LIST_LEN {
        let error = ProxyError::Limit("the request's metadata is larger than 64 KiB");
        return ready(Err(error.into())).boxed();
    }
    match Charged::new(&proxy, &mut call) {
        Ok(None) => dispatch(proxy, method, call),
        Ok(Some(charged)) => charged.during(dispatch(proxy, method, call)).boxed(),
        Err(error) => ready(Err(error.into())).boxed(),
    }
}

fn dispatch(
    proxy: Arc<Proxy>,
    method: &'static Method,
    call: Call,
) -> BoxFuture<'static, CallResult> {
    proxy.metrics.count_started(method.labels());
    let route = method.route(&call.parts.headers, call.client.identity.as_ref());
    if let Err(denied) = permit(&proxy, &call.client, route.needs()) {
        return ready(Err(ProxyError::from(denied).into())).boxed();
    }
    match route {
        Route::Solve => async move { builds::solve(&proxy, call).await }.boxed(),
        Route::Session(id) => async move { builds::session(&proxy, call, id).await }.boxed(),
        Route::Status => async move { builds::status(&proxy, call).await }.boxed(),
        Route::Build(id) => async move { builds::bridge(&proxy, call, id).await }.boxed(),
        Route::Ping(id) => async move { builds::ping(&proxy, call, id).await }.boxed(),
        Route::Return(id) => async move { builds::finish(&proxy, call, id).await }.boxed(),
        Route::Follow(id) => async move { builds::follow(&proxy, call, id).await }.boxed(),
        Route::DiskUsage => async move { fanout::disk_usage(&proxy, call).await }.boxed(),
        Route::Prune => async move { fanout::prune(&proxy, call).await }.boxed(),
        Route::ListenHistory => async move { fanout::listen_history(&proxy, call).await }.boxed(),
        Route::UpdateHistory => async move { fanout::update_history(&proxy, call).await }.boxed(),
        Route::ContentByDigest => {
            async move { fanout::content_by_digest(&proxy, call).await }.boxed()
        }
        Route::ContentList => async move { fanout::content_list(&proxy, call).await }.boxed(),
        Route::ExportTrace => async move { fanout::export_trace(&proxy, call).await }.boxed(),
        Route::FirstAnswer => async move { fanout::first_answer(&proxy, call).await }.boxed(),
        Route::Any => async move { builds::any(&proxy, call).await }.boxed(),
    }
}

/// Checks that the access rules allow what a call of `client` needs.
fn permit(proxy: &Proxy, client: &Client, needs: Needs) -> Result<(), Denied> {
    let grant = proxy.grant(client);
    let pool = proxy.metrics.pool();
    if !grant.allows_pool(pool) {
        return Err(denied(client.identity.as_deref(), format!("use the pool {pool}")));
    }
    let forbidden = match needs {
        Needs::Operation(operation) if !grant.allows(operation) => operation.described(),
        Needs::History if grant.history() == Reach::None => "ask for build records",
        Needs::Content if grant.content() == Reach::None => "read blobs",
        Needs::AllContent if !lists_all(grant, client) => "list the blobs of all clients",
        _ => return Ok(()),
    };
    Err(denied(client.identity.as_deref(), forbidden))
}

/// Whether `client` may list all blobs. To clients without a name, no blob belongs to somebody else.
fn lists_all(grant: &Grant, client: &Client) -> bool {
    match grant.content() {
        Reach::All => true,
        Reach::Own => client.identity.is_none(),
        Reach::None => false,
    }
}
