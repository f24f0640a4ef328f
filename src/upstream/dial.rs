//! Opens a connection to a daemon, and tells whose fault it is if that fails.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, UnixStream},
    time::{Instant as Deadline, timeout_at},
};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::spare::{Line, Spares, Use};
use crate::{
    address::Address,
    client::Client,
    descriptors::is_shortage,
    error::{Chain, ProxyError, chain},
    fleet::{Backend, Fault},
    http2_limits::{DAEMON_HEADER_LIST_LEN, FRAME_LEN, SEND_BUFFER_LEN},
    io::{Batched, Flushing, Payload, Secured, Socket, configure_tcp},
    shares::{LimitReached, Share, Shares},
    tls,
};

/// A daemon that accepts takes milliseconds. A lost SYN is sent again after 1 s and 3 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, Clone)]
pub(super) enum DialError {
    /// The backend is at fault.
    Fault(Fault, Arc<str>),
    /// The proxy lacks something that a connection needs.
    Shortage(Arc<str>),
    /// The client, or all clients together, have as many connections as they may.
    LimitReached(LimitReached),
}

/// The receive windows of each stream and of the whole connection, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    pub(super) stream: u32,
    pub(super) connection: u32,
}

pub(super) type Sender = SendRequest<Payload>;
pub(super) type Dial = Shared<BoxFuture<'static, Result<Connection, DialError>>>;

/// An open connection. It closes, or becomes a spare, when all clones are gone. Each stream holds one.
pub(super) type Connection = Arc<Use>;

impl DialError {
    /// Returns the error for a call. If `backend` is at fault, the fault is reported to it.
    pub(super) fn report(self, backend: &Backend) -> ProxyError {
        match self {
            Self::Fault(fault, cause) => {
                backend.report_fault(fault, &cause, Instant::now());
                let backend = backend.name().to_owned();
                ProxyError::Connect { backend, cause: cause.to_string() }
            }
            Self::Shortage(cause) => ProxyError::Shortage { cause: cause.to_string() },
            Self::LimitReached(LimitReached::Total) => {
                ProxyError::Limit("the proxy has as many connections to backends as it may")
            }
            Self::LimitReached(LimitReached::Connection | LimitReached::Address) => {
                ProxyError::Limit("this client has as many connections to backends as one may")
            }
        }
    }
}

/// What is needed to connect to one backend.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    pub(super) backend: Arc<Backend>,
    pub(super) windows: Windows,
    pub(super) tasks: TaskTracker,
    /// The client that owns the connection; `None` if it is the proxy's own.
    pub(super) owner: Option<Owner>,
    /// The connections that builds have left; `None` if it is not for a build.
    pub(super) spares: Option<Arc<Spares>>,
}

/// The client that a connection is for, and the limit that it counts towards.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) client: Client,
    pub(super) connections: Shares,
}

impl Owner {
    fn share(&self) -> Result<Share, DialError> {
        self.connections.take_spare(&self.client, 1).map_err(DialError::LimitReached)
    }
}

impl Dialer {
    /// A connection that is being opened, for all calls that wait for it.
    pub(super) fn dial(&self) -> Dial {
        dial(self.clone()).boxed().shared()
    }
}

async fn dial(dialer: Dialer) -> Result<Connection, DialError> {
    let Dialer { backend, windows, tasks, owner, spares } = dialer;
    let share = owner.map(|owner| owner.share()).transpose()?;
    let spare = match &spares {
        Some(spares) => spares.take().await,
        None => None,
    };
    let line = match spare {
        Some(line) => {
            line.count_for(share);
            line
        }
        None => Arc::new(open(backend, windows, &tasks, share).await?),
    };
    Ok(Arc::new(Use::new(line, spares)))
}

/// Opens a connection, and waits until the daemon shows that it is there.
async fn open(
    backend: Arc<Backend>,
    windows: Windows,
    tasks: &TaskTracker,
    share: Option<Share>,
) -> Result<Line, DialError> {
    let started = Instant::now();
    let deadline = Deadline::now() + CONNECT_TIMEOUT;
    let socket = open_socket(&backend, deadline).await?;
    backend.metrics().connect.observe(started.elapsed().as_secs_f64());
    let io = Batched::with_daemon(socket);
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .max_frame_size(FRAME_LEN)
        .initial_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_header_list_size(DAEMON_HEADER_LIST_LEN)
        // A daemon keeps sending for a while in a stream that its client has cancelled. The library counts each of
        // these frames as an error and by default allows a thousand.
        .max_local_error_reset_streams(None)
        .max_send_buffer_size(SEND_BUFFER_LEN)
        .initial_max_send_streams(usize::MAX >> 1)
        .handshake(io.clone())
        .await;
    let (sender, mut connection) =
        handshake.map_err(|error| DialError::Fault(Fault::Lost, chain(&error).into()))?;
    let line = Line::new(sender, connection.ping_pong());
    line.count_for(share);
    let state = Arc::clone(line.state());
    let connection = Flushing::new(connection, io.clone());
    backend.metrics().connections.inc();
    // This is no async block, because a block would store the connection twice.
    tasks.spawn(connection.map(move |result| {
        backend.metrics().connections.dec();
        if let Err(error) = result {
            debug!(backend = backend.name(), error = %Chain(&error), "upstream connection ended");
        }
        state.end();
    }));
    settings_received(&io, deadline).await.map(|()| line)
}

/// Connects to `backend` and makes the TLS handshake, if there is one.
async fn open_socket(backend: &Backend, deadline: Deadline) -> Result<Socket, DialError> {
    let socket = match timeout_at(deadline, connect(backend.address())).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            let cause = chain(&error).into();
            return Err(match is_shortage(&error) {
                true => DialError::Shortage(cause),
                false => DialError::Fault(Fault::Refused, cause),
            });
        }
        Err(_elapsed) => return Err(timed_out("no connection")),
    };
    match timeout_at(deadline, secure(socket, backend)).await {
        Ok(secured) => secured.map_err(|cause| DialError::Fault(Fault::Tls, cause.into())),
        Err(_elapsed) => {
            Err(timed_out("accepted the connection, but did not answer the TLS handshake"))
        }
    }
}

/// Waits for the SETTINGS of the daemon.
///
/// The system accepts connections for a daemon that is stopped or hangs. Only the SETTINGS show that the daemon is
/// there. Once a Solve has been sent, it is too late to try another daemon.
async fn settings_received(io: &Batched, deadline: Deadline) -> Result<(), DialError> {
    match timeout_at(deadline, io.first_read()).await {
        Ok(()) if io.received() > 0 => Ok(()),
        Ok(()) => Err(match io.refusal() {
            Some(cause) => DialError::Fault(Fault::Tls, cause),
            None => {
                let cause = "closed the connection before sending SETTINGS";
                DialError::Fault(Fault::Lost, cause.into())
            }
        }),
        Err(_elapsed) => Err(timed_out("accepted the connection, but sent no SETTINGS")),
    }
}

fn timed_out(what: &str) -> DialError {
    DialError::Fault(Fault::Timeout, format!("{what} within {CONNECT_TIMEOUT:?}").into())
}

/// Makes a TLS handshake over `socket`, if the connections to `backend` use TLS.
async fn secure(socket: Socket, backend: &Backend) -> Result<Socket, String> {
    let Some(tls) = backend.tls() else { return Ok(socket) };
    let name = ServerName::try_from(tls.server_name().to_owned())
        .map_err(|_invalid| format!("`{}` is not a name that TLS can check", tls.server_name()))?;
    // Boxed, so that an open connection does not keep the memory of its handshake.
    match Box::pin(Secured::connect(socket, tls.config(), name)).await {
        Ok(secured) => Ok(Socket::Tls(Box::new(secured))),
        Err(error) => Err(tls::failure(&error, "the daemon").text),
    }
}

async fn connect(address: &Address) -> io::Result<Socket> {
    match address {
        Address::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            configure_tcp(&stream)?;
            Ok(Socket::Tcp(stream))
        }
        Address::Unix(path) => Ok(Socket::Unix(UnixStream::connect(path).await?)),
    }
}
