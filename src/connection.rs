//! One HTTP/2 connection of a client: serves its streams, and closes it when a drain allows that or when another
//! client needs its permit.

mod calls;
mod metadata;
mod pace;
mod server;
mod stream;
mod token;
mod windows;

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use self::{calls::Calls, server::Server};
use crate::{
    client::{ActiveStreams, Client},
    connection_limit::{ConnectionPermit, TooManyConnections},
    error::{ConnectionError, ConnectionErrorReason, ProxyError, chain},
    gate::Gate,
    io::{Batched, Flushing, PREFACE_LEN, Socket},
    metrics::Metrics,
    opening::{self, HTTP1_ANSWER, Opening},
    proxy::Proxy,
};

/// How long a client may take for its HTTP/2 preface and SETTINGS (grpc-go's own limit is 120 s).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// The length of the preface and an empty SETTINGS frame in bytes (RFC 9113 section 3.4).
const HANDSHAKE_LEN: usize = PREFACE_LEN + 9;

/// How long a connection must be without a build before a drain closes it. A client is for some milliseconds
/// between its ListWorkers and its Solve, and must not be cut off then.
const QUIET: Duration = Duration::from_millis(500);

/// How long a connection without a stream stays open after it was asked to close. A client that is there confirms a
/// GOAWAY at once.
pub const CLOSING_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client without a permit has to make a call and read the error.
const TELLING_TIMEOUT: Duration = Duration::from_secs(5);

/// What every connection needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// The shared state of the pool.
    pub proxy: Arc<Proxy>,
    /// Tracks the tasks of client streams.
    pub tasks: TaskTracker,
    /// Cancelled when the proxy drains.
    pub drain: CancellationToken,
}

/// How a connection has ended.
pub type Ended = Result<(), ConnectionError>;

/// An open HTTP/2 connection.
type Connection = Pin<Box<Flushing<Server>>>;

/// The client of a new connection from `peer`, or through a Unix socket.
pub fn client(peer: Option<SocketAddr>) -> Client {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let connection = NEXT.fetch_add(1, Ordering::Relaxed);
    // A mapped address is the same client over the other family.
    Client::new(connection, peer.map(|peer| peer.ip().to_canonical()))
}

/// Serves one connection until it ends, or until another client gets its permit.
///
/// This is not an async function, because its future would keep a second copy of the arguments as long as the
/// connection lives.
pub fn serve(
    socket: Socket,
    client: Client,
    permit: ConnectionPermit,
    context: Context,
) -> impl Future<Output = ()> + Send {
    let number = client.connection;
    let metrics = Arc::clone(&context.proxy.metrics);
    metrics.connections.inc();
    metrics.connections_active.inc();
    drive(socket, client, context, None).map(move |ended| {
        metrics.connections_active.dec();
        if let Err(error) = ended {
            report_error(number, &metrics, &error);
        }
        drop(permit);
    })
}

/// Answers the calls of a client that gets no permit, and closes the connection.
pub async fn refuse(socket: Socket, client: Client, cause: TooManyConnections, context: Context) {
    context.proxy.metrics.connection_error(ConnectionErrorReason::TooManyConnections);
    let refused = ProxyError::TooManyConnections(cause);
    let _ = timeout(TELLING_TIMEOUT, Box::pin(drive(socket, client, context, Some(refused)))).await;
}

fn drive(
    socket: Socket,
    mut client: Client,
    context: Context,
    refused: Option<ProxyError>,
) -> impl Future<Output = Ended> + Send {
    client.secured = matches!(socket, Socket::Tls(_));
    let io = Batched::with_client(socket);
    let (active, drain) = (Arc::clone(&client.active), context.drain.clone());
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let opening = Box::pin(open(io.clone(), client, context, refused, deadline));
    async move {
        let Some(mut connection) = opening.await? else { return Ok(()) };
        let ended = {
            let mut close = pin!(Gate::new(asked_to_close(&io, deadline, &drain, &active)));
            tokio::select! {
                biased;
                result = &mut connection => return outcome(result, &io),
                ended = &mut close => ended?,
            }
        };
        connection.as_mut().inner_mut().close();
        tokio::select! {
            result = connection => ended.and(outcome(result, &io)),
            () = unused(&active) => ended,
        }
    }
}

/// Completes when an open connection must close, with what that means for its end.
///
/// # Errors
/// The client has not finished the HTTP/2 handshake by `deadline`. The connection must end at once.
async fn asked_to_close(
    io: &Batched,
    deadline: Instant,
    drain: &CancellationToken,
    active: &ActiveStreams,
) -> Result<Ended, ConnectionError> {
    tokio::select! {
        () = handshake_overdue(io, deadline) => Err(no_handshake()),
        () = may_close(drain, active) => Ok(Ok(())),
        () = active.dismissed() => Ok(Err(evicted())),
    }
}

/// Waits for the first bytes of the client. `None` if there is nothing to serve.
async fn open(
    io: Batched,
    client: Client,
    context: Context,
    refused: Option<ProxyError>,
    deadline: Instant,
) -> Result<Option<Connection>, ConnectionError> {
    let inspect = |bytes: &[u8]| opening::inspect(bytes, Opening::Http2);
    let (opening, shown) = tokio::select! {
        opened = io.first_bytes(inspect) => opened.map_err(|error| lost(&error))?,
        () = sleep_until(deadline) => return Err(no_handshake()),
        () = quiet(&context.drain) => return Ok(None),
        () = client.active.dismissed() => return Err(evicted()),
    };
    match opening {
        Opening::Http2 => Ok(Some(handshake(io, client, context, refused))),
        Opening::Nothing => Ok(None),
        stranger => {
            let answered = io.finish_with(HTTP1_ANSWER);
            Err(turn_away(stranger, &shown, &client, &context, answered).await)
        }
    }
}

/// Logs that a client speaks another protocol than the port, and returns the error for it. `shown` is how the
/// client began. `answered` sends an answer to a client that speaks HTTP/1.
pub async fn turn_away<T>(
    stranger: Opening,
    shown: &str,
    client: &Client,
    context: &Context,
    answered: impl Future<Output = T>,
) -> ConnectionError {
    let reason = stranger.reason();
    context.proxy.refusals.stranger(reason, client.address, shown);
    if stranger == Opening::Http1 {
        // It does not matter whether the client reads the answer.
        let _ = timeout(CLOSING_TIMEOUT, answered).await;
    }
    ConnectionError::new(reason, format!("the client began with {shown}"))
}

fn handshake(
    io: Batched,
    client: Client,
    context: Context,
    refused: Option<ProxyError>,
) -> Connection {
    let Context { proxy, tasks, drain: _ } = context;
    let server = Server::new(io.clone(), Calls::new(proxy, client, refused), tasks);
    // A client's SETTINGS follow its preface at once, but often in a packet of their own.
    Box::pin(Flushing::new(server, io).after(HANDSHAKE_LEN))
}

fn no_handshake() -> ConnectionError {
    ConnectionError::new(ConnectionErrorReason::HandshakeTimeout, "no HTTP/2 preface")
}

/// The error of a connection whose permit another client got.
pub fn evicted() -> ConnectionError {
    ConnectionError::new(
        ConnectionErrorReason::Evicted,
        "the connection had no stream, and another client needed its permit",
    )
}

/// The error of a connection whose socket failed before the client sent anything.
pub fn lost(error: &std::io::Error) -> ConnectionError {
    ConnectionError::new(ConnectionErrorReason::Io, error.to_string())
}

/// Logs and counts a connection that ended with `error`.
pub fn report_error(connection: u64, metrics: &Metrics, error: &ConnectionError) {
    let ConnectionError { reason, text } = error;
    debug!(connection, reason = reason.label(), error = text, "connection ended");
    metrics.connection_error(*reason);
}

/// Completes if the client has not finished the HTTP/2 handshake by `deadline`.
async fn handshake_overdue(io: &Batched, deadline: Instant) {
    sleep_until(deadline).await;
    if io.received() >= HANDSHAKE_LEN {
        std::future::pending::<()>().await;
    }
}

/// Completes half a second after a drain has begun.
pub async fn quiet(drain: &CancellationToken) {
    drain.cancelled().await;
    sleep(QUIET).await;
}

/// Completes when a drain may close the connection, because no build is left on it.
async fn may_close(drain: &CancellationToken, active: &ActiveStreams) {
    drain.cancelled().await;
    loop {
        active.idle().await;
        sleep(QUIET).await;
        if active.is_idle() {
            return;
        }
    }
}

/// Completes when a connection that was asked to close has had no stream for a second. The other side does not
/// answer then.
async fn unused(active: &ActiveStreams) {
    loop {
        active.silent().await;
        sleep(CLOSING_TIMEOUT).await;
        if active.is_silent() {
            return;
        }
    }
}

fn outcome(result: Result<(), h2::Error>, io: &Batched) -> Ended {
    let error = match result {
        // A TCP health check connects and closes.
        Err(_) if io.received() == 0 => return Ok(()),
        Err(error) => error,
        Ok(()) => return Ok(()),
    };
    let reason = if error.is_io() {
        // A client that is killed closes its connection in the middle.
        ConnectionErrorReason::Io
    } else if error.is_remote() {
        ConnectionErrorReason::Goaway
    } else {
        ConnectionErrorReason::Protocol
    };
    Err(ConnectionError::new(reason, chain(&error)))
}
