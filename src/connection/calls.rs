//! The calls of one connection: each to its handler, and its answer back.

use std::{
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use http::{Request, Response};
use hyper::{body::Incoming, rt::Executor, service::Service};
use tokio_util::task::TaskTracker;

use super::metadata::Charged;
use crate::{
    builds,
    call::{Call, CallError, CallResult},
    client::{ActiveStreams, Client},
    error::ProxyError,
    fanout,
    http2_limits::{HEADER_LIST_LEN, header_list_len},
    proxy::Proxy,
    refusals::Refusals,
    relay::{Body, ResetError},
    router::{self, Route},
};

/// What takes the calls of one connection.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) proxy: Proxy,
    pub(super) client: Client,
    /// What each call is answered with, if there is no place for the connection.
    pub(super) refused: Option<ProxyError>,
}

impl Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = ResetError;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let refusals = Arc::clone(&self.proxy.refusals);
        let handling = match &self.refused {
            Some(error) => ready(Err(error.clone().into())).boxed(),
            None => handle(self.proxy.clone(), Call::new(request, self.client.clone())),
        };
        Answering { handling, refusals }
    }
}

/// Boxed, so that an open stream keeps no more than its own way to an answer, and that only until the
/// answer begins.
fn handle(proxy: Proxy, mut call: Call) -> BoxFuture<'static, CallResult> {
    if header_list_len(&call.parts.headers) > HEADER_LIST_LEN {
        let error = ProxyError::Limit("the request's metadata is larger than 64 KiB");
        return ready(Err(error.into())).boxed();
    }
    match Charged::new(&proxy, &mut call) {
        Ok(None) => dispatch(proxy, call),
        Ok(Some(charged)) => charged.during(dispatch(proxy, call)).boxed(),
        Err(error) => ready(Err(error.into())).boxed(),
    }
}

fn dispatch(proxy: Proxy, call: Call) -> BoxFuture<'static, CallResult> {
    let method = router::method(call.parts.uri.path());
    proxy.metrics.count_started(method.labels());
    match method.route(&call.parts.headers) {
        Route::Solve => async move { builds::solve(&proxy, call).await }.boxed(),
        Route::Session(id) => async move { builds::session(&proxy, call, id).await }.boxed(),
        Route::Status => async move { builds::status(&proxy, call).await }.boxed(),
        Route::Build(id) => async move { builds::bridge(&proxy, call, id).await }.boxed(),
        Route::Return(id) => async move { builds::finish(&proxy, call, id).await }.boxed(),
        Route::Follow(key) => async move { builds::follow(&proxy, call, &key).await }.boxed(),
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

/// An answer that is being found. Its type names no lifetime, which the compiler needs to see that a
/// connection may run on any thread.
pub(super) struct Answering {
    handling: BoxFuture<'static, CallResult>,
    refusals: Arc<Refusals>,
}

impl Future for Answering {
    type Output = Result<Response<Body>, ResetError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        self.handling.as_mut().poll(cx).map(|result| match result {
            Ok(response) => Ok(response),
            Err(CallError::Own(error)) => Ok(self.refusals.answer(&error)),
            Err(CallError::Reset(reset)) => Err(reset),
        })
    }
}

/// Spawns the streams of a connection where a drain can wait for them, and counts them.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    pub(super) tasks: TaskTracker,
    pub(super) active: Arc<ActiveStreams>,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let open = self.active.enter_call();
        self.tasks.spawn(stream.map(move |()| drop(open)));
    }
}
