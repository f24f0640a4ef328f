//! One downstream HTTP/2 connection: serve its streams, and let it go when a drain allows.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, ready},
};
use http::Response;
use hyper::{rt::Executor, server::conn::http2, service::service_fn};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    builds,
    call::{Call, CallError, CallResult},
    client::{ActiveStreams, Client},
    error::{Chain, ProxyError},
    fanout,
    http2_limits::{
        CONNECTION_WINDOW, FRAME_LEN, HARD_HEADER_LIST_LEN, HEADER_LIST_LEN, MAX_STREAMS,
        PENDING_RESETS, SEND_BUFFER_LEN, STREAM_WINDOW, header_list_len,
    },
    io::{Batched, Flushing, PREFACE_LEN, Socket},
    proxy::Proxy,
    refusals::Refusals,
    relay::{Body, ResetError},
    router::{self, Route},
};

/// How long a client may take for its HTTP/2 preface and SETTINGS (grpc-go's own limit is 120 s).
const GREETING_TIMEOUT: Duration = Duration::from_secs(20);

/// Length of the preface and of an empty SETTINGS frame (RFC 9113 section 3.4).
const GREETING_LEN: usize = PREFACE_LEN + 9;

/// A connection without a build is closed in a drain once it was quiet this long: a client between
/// its ListWorkers and its Solve, milliseconds apart, must not be cut.
const QUIET: Duration = Duration::from_millis(500);

/// What every connection needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// The proxy's shared state.
    pub proxy: Proxy,
    /// Tasks of downstream streams.
    pub tasks: TaskTracker,
    /// Cancelled when the proxy drains.
    pub drain: CancellationToken,
}

/// Serves one connection until it ends, within the limit that `permit` is of.
///
/// Not an async function, which would keep what it is given a second time while the connection lives.
pub fn serve(
    socket: Socket,
    permit: OwnedSemaphorePermit,
    context: Context,
) -> impl Future<Output = ()> + Send {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let metrics = Arc::clone(&context.proxy.metrics);
    metrics.connections.inc();
    metrics.connections_active.inc();
    drive(socket, number, context).map(move |result| {
        metrics.connections_active.dec();
        if let Err((reason, error)) = result {
            debug!(connection = number, reason, error, "connection ended");
            metrics.connection_error(reason);
        }
        drop(permit);
    })
}

fn drive(
    socket: Socket,
    number: u64,
    context: Context,
) -> impl Future<Output = Result<(), (&'static str, String)>> + Send {
    let address = socket.peer();
    let io = Batched::with_client(socket);
    let active = Arc::new(ActiveStreams::default());
    let Context { proxy, tasks, drain } = context;
    let service = service_fn({
        let client = Client { connection: number, address, active: Arc::clone(&active) };
        move |request| {
            let refusals = Arc::clone(&proxy.refusals);
            let handling = handle(proxy.clone(), Call::new(request, client.clone()));
            Answering { handling, refusals }
        }
    });
    let connection = http2::Builder::new(TrackedExecutor(tasks))
        .auto_date_header(false)
        .max_frame_size(FRAME_LEN)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HARD_HEADER_LIST_LEN)
        .max_send_buf_size(SEND_BUFFER_LEN)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .serve_connection(io.clone(), service);
    let mut connection = Box::pin(Flushing::new(connection, io.clone()));
    async move {
        tokio::select! {
            result = &mut connection => return outcome(result, &io),
            () = ungreeted(&io) => return Err(("greeting_timeout", "no HTTP/2 preface".to_owned())),
            () = may_close(&drain, &active) => connection.as_mut().inner_mut().graceful_shutdown(),
        }
        outcome(connection.await, &io)
    }
}

/// Completes if the client does not greet in time.
async fn ungreeted(io: &Batched) {
    tokio::time::sleep(GREETING_TIMEOUT).await;
    if io.received() >= GREETING_LEN {
        std::future::pending::<()>().await;
    }
}

/// Completes when a drain may close the connection: no build is left on it.
async fn may_close(drain: &CancellationToken, active: &ActiveStreams) {
    drain.cancelled().await;
    loop {
        active.idle().await;
        tokio::time::sleep(QUIET).await;
        if active.is_idle() {
            return;
        }
    }
}

fn outcome(result: hyper::Result<()>, io: &Batched) -> Result<(), (&'static str, String)> {
    match result {
        // A TCP health check: connects and closes.
        Err(_) if io.received() == 0 => Ok(()),
        Err(error) => {
            let text = Chain(&error).to_string();
            let h2 = std::error::Error::source(&error)
                .and_then(|cause| cause.downcast_ref::<h2::Error>());
            match h2 {
                // Hanging up in the middle is how a killed client leaves.
                Some(h2) if h2.is_io() => Err(("io", text)),
                Some(h2) if h2.is_remote() => Err(("goaway", text)),
                _ => Err(("protocol", text)),
            }
        }
        Ok(()) => Ok(()),
    }
}

/// Boxed, so that an open stream keeps no more than its own way to an answer, and that only until the
/// answer begins.
fn handle(proxy: Proxy, call: Call) -> BoxFuture<'static, CallResult> {
    if header_list_len(&call.parts.headers) > HEADER_LIST_LEN {
        let error = ProxyError::Limit("the request's metadata is larger than 2 MiB");
        return ready(Err(error.into())).boxed();
    }
    let method = router::method(call.parts.uri.path());
    proxy.metrics.count_started(method.labels());
    match method.route(&call.parts.headers) {
        Route::Solve => async move { builds::solve(&proxy, call).await }.boxed(),
        Route::Session(id) => async move { builds::session(&proxy, call, id).await }.boxed(),
        Route::Status => async move { builds::status(&proxy, call).await }.boxed(),
        Route::Build(id) => async move { builds::bridge(&proxy, call, id).await }.boxed(),
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

/// An answer that is being found. Its type names no lifetime, which the compiler needs to see that
/// [`drive`] may run on any thread.
struct Answering {
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

/// Spawns the streams of a connection where a drain can wait for them.
#[derive(Debug, Clone)]
struct TrackedExecutor(TaskTracker);

impl<F> Executor<F> for TrackedExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
