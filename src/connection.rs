//! One downstream HTTP/2 connection: serve its streams, and let it go when a drain allows.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderMap, Request};
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use crate::{
    build,
    error::{Chain, ProxyError},
    fanout,
    http2_limits::{
        CONNECTION_WINDOW, HARD_HEADER_LIST_LEN, HEADER_LIST_LEN, MAX_STREAMS, PENDING_RESETS,
        SEND_BUFFER_LEN, STREAM_WINDOW,
    },
    io::{Batched, Flushing, PREFACE_LEN, Socket},
    origin::{ConnectionLoad, Origin},
    proxy::{Answer, Proxy},
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

/// Serves one connection until it ends.
pub async fn serve(socket: Socket, context: Context) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let metrics = Arc::clone(&context.proxy.metrics);
    metrics.connections.inc();
    metrics.connections_active.inc();
    let error = drive(socket, number, context).await.err();
    metrics.connections_active.dec();
    if let Some((reason, error)) = error {
        debug!(connection = number, reason, error, "connection ended");
        metrics.connection_error(reason);
    }
}

async fn drive(
    socket: Socket,
    number: u64,
    context: Context,
) -> Result<(), (&'static str, String)> {
    let client = socket.peer();
    let io = Batched::with_client(socket);
    let load = Arc::new(ConnectionLoad::default());
    let Context { proxy, tasks, drain } = context;
    let service = service_fn({
        let load = Arc::clone(&load);
        move |request| {
            let load = Arc::clone(&load);
            let origin = Origin { connection: number, client, load, arrived: Instant::now() };
            let proxy = proxy.clone();
            async move { answer(&proxy, request, &origin).await }
        }
    });
    let connection = http2::Builder::new(TrackedExecutor(tasks))
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(HARD_HEADER_LIST_LEN)
        .max_send_buf_size(SEND_BUFFER_LEN)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .serve_connection(io.clone(), service);
    let mut connection = Box::pin(Flushing::new(connection, io.clone()));
    tokio::select! {
        result = &mut connection => return outcome(result, &io),
        () = ungreeted(&io) => return Err(("greeting_timeout", "no HTTP/2 preface".to_owned())),
        () = may_close(&drain, &load) => connection.as_mut().inner_mut().graceful_shutdown(),
    }
    outcome(connection.await, &io)
}

/// Completes if the client does not greet in time.
async fn ungreeted(io: &Batched) {
    tokio::time::sleep(GREETING_TIMEOUT).await;
    if io.received() >= GREETING_LEN {
        std::future::pending::<()>().await;
    }
}

/// Completes when a drain may close the connection: no build is left on it.
async fn may_close(drain: &CancellationToken, load: &ConnectionLoad) {
    drain.cancelled().await;
    loop {
        load.idle().await;
        tokio::time::sleep(QUIET).await;
        if load.is_idle() {
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

async fn answer(proxy: &Proxy, request: Request<Incoming>, origin: &Origin) -> Answer {
    if header_list_len(request.headers()) > HEADER_LIST_LEN {
        return Ok(proxy.reject(&ProxyError::Limit("the request's metadata is larger than 2 MiB")));
    }
    let path = request.uri().path();
    let route = router::route(path, request.headers());
    proxy.metrics.count_started(router::labels(path));
    // Boxed, so that an open stream does not keep the memory of the largest way to open one.
    match route {
        Route::Solve => Box::pin(build::solve(proxy, request, origin)).await,
        Route::Session(id) => Box::pin(build::session(proxy, request, id, origin)).await,
        Route::Status => Box::pin(build::status(proxy, request)).await,
        Route::Build(id) => Box::pin(build::bridge(proxy, request, id)).await,
        Route::Follow(key) => Box::pin(build::follow(proxy, request, &key)).await,
        Route::DiskUsage => Box::pin(fanout::disk_usage(proxy, request)).await,
        Route::Prune => Box::pin(fanout::prune(proxy, request)).await,
        Route::ListenHistory => Box::pin(fanout::listen_history(proxy, request)).await,
        Route::UpdateHistory => Box::pin(fanout::update_history(proxy, request)).await,
        Route::ContentByDigest => Box::pin(fanout::content_by_digest(proxy, request)).await,
        Route::ContentList => Box::pin(fanout::content_list(proxy, request)).await,
        Route::ExportTrace => Box::pin(fanout::export_trace(proxy, request)).await,
        Route::FirstAnswer => Box::pin(fanout::first_answer(proxy, request)).await,
        Route::Any => Box::pin(build::any(proxy, request)).await,
    }
}

/// Size of a header list as HTTP/2 counts it (RFC 9113 section 6.5.2).
fn header_list_len(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
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
