//! One HTTP/2 connection to a daemon: dial, send, and dial again once it takes no more streams.
//!
//! A [`Link`] belongs to one binding (or to the fleet's own calls), so a lost connection costs one
//! build. A request is sent again only when the library hands it back unsent.

mod call;

use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use h2::client::SendRequest;
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::call::{CallError, call};
use crate::{
    address::Address,
    descriptors::is_shortage,
    error::{Chain, ProxyError, chain},
    fleet::{Backend, Fault, Fleet},
    http2_limits::{
        CONNECTION_WINDOW, DAEMON_HEADER_LIST_LEN, FRAME_LEN, SEND_BUFFER_LEN,
        SHARED_CONNECTION_WINDOW, SHARED_STREAM_WINDOW, STREAM_WINDOW,
    },
    io::{Batched, Flushing, Payload, Socket},
    relay::{Body, Failure, Received, ResetError},
};

/// A daemon that accepts takes milliseconds; a lost SYN is sent again after 1 s and 3 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// An idle peer that is gone is found after this plus three probes ten seconds apart.
///
/// TCP's own keepalive, not HTTP/2's: a daemon closes a connection that is pinged more often than
/// every five minutes (grpc-go `too_many_pings`). It also keeps a cloud load balancer's idle timer
/// (4 minutes on Azure) from closing a silent build.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long sent data may stay unacknowledged: a node that vanished in the middle of a transfer.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

/// Sets what every TCP connection of the proxy has: no delay, and keepalive that finds dead peers.
///
/// # Errors
/// The system refuses an option.
pub fn configure_tcp(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

/// Why a request got no response.
#[derive(Debug)]
pub enum SendError {
    /// The proxy's view: the backend is not reachable or was lost.
    Proxy(ProxyError),
    /// The daemon reset the stream: the client gets the same reset.
    Reset(h2::Error),
    /// The client reset the stream, or went away, and so it was reset at the daemon.
    Cancelled,
}

#[derive(Debug, Clone)]
enum DialError {
    /// It is the backend's doing.
    Fault(Fault, Arc<str>),
    /// We lack what a connection takes.
    Shortage(Arc<str>),
}

/// Receive windows of each stream and of the whole connection.
#[derive(Debug, Clone, Copy)]
struct Windows {
    stream: u32,
    connection: u32,
}

type Sender = SendRequest<Payload>;
type Dial = Shared<BoxFuture<'static, Result<Connection, DialError>>>;

/// An open connection. It closes when all clones are gone and its last stream has ended.
#[derive(Debug, Clone)]
struct Connection {
    sender: Sender,
    ended: Arc<AtomicBool>,
}

/// A connection to one backend, opened when first needed. Clones share it.
#[derive(Clone)]
pub struct Link {
    backend: Arc<Backend>,
    windows: Windows,
    dial: Arc<Mutex<Option<Dial>>>,
    tasks: TaskTracker,
}

impl Link {
    /// A link for one build that is not yet open; its tasks run on `tasks`.
    pub fn new(backend: Arc<Backend>, tasks: TaskTracker) -> Self {
        let windows = Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };
        Self { backend, windows, dial: Arc::default(), tasks }
    }

    /// The same for the calls of many clients.
    fn shared(backend: Arc<Backend>, tasks: TaskTracker) -> Self {
        let windows =
            Windows { stream: SHARED_STREAM_WINDOW, connection: SHARED_CONNECTION_WINDOW };
        Self { windows, ..Self::new(backend, tasks) }
    }

    /// The backend it leads to.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Opens the connection, unless it is open.
    ///
    /// # Errors
    /// [`ProxyError::Connect`]; the backend is then ejected. [`ProxyError::Shortage`] if that is ours.
    pub async fn open(&self) -> Result<(), ProxyError> {
        self.sender().await.map(drop)
    }

    /// Lets go of the connection: it closes when its last stream has ended.
    pub fn release(&self) {
        self.dial.lock().take();
    }

    /// Sends a request and waits for the response's headers, without a bound: builds are silent for
    /// hours. The request is boxed because it is not needed as long.
    ///
    /// # Errors
    /// See [`SendError`]. What was handed to the connection is never sent again.
    pub async fn send(
        &self,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Received>, SendError> {
        self.complete_uri(&mut request);
        // A connection can close (GOAWAY) between the look and the send; then the request comes
        // back unsent and goes out on a new connection, as grpc-go does it.
        let mut attempts = 0;
        loop {
            let sender = self.sender().await.map_err(SendError::Proxy)?;
            attempts += 1;
            match call(sender, request, &self.tasks).await {
                Ok(response) => return Ok(response),
                Err(CallError::Unsent(unsent, _)) if attempts < 3 => {
                    debug!(backend = self.backend.name(), "connection takes no more streams");
                    self.release();
                    request = unsent;
                }
                Err(CallError::Unsent(_, error) | CallError::Failed(error)) => {
                    return Err(self.failed(error));
                }
            }
        }
    }

    fn failed(&self, error: h2::Error) -> SendError {
        let (backend, cause) = (self.backend.name().to_owned(), chain(&error));
        match Failure::of(&error) {
            Failure::Reset(_) => SendError::Reset(error),
            Failure::Cancelled => SendError::Cancelled,
            Failure::Refused => SendError::Proxy(ProxyError::BadAnswer { backend, cause }),
            Failure::Lost => {
                self.backend.report_fault(Fault::Lost, &cause, Instant::now());
                SendError::Proxy(ProxyError::BackendLost { backend, cause })
            }
        }
    }

    async fn sender(&self) -> Result<Sender, ProxyError> {
        let dial = self.current_dial();
        dial.await.map(|connection| connection.sender).map_err(|error| {
            self.release();
            match error {
                DialError::Fault(fault, cause) => {
                    self.backend.report_fault(fault, &cause, Instant::now());
                    let backend = self.backend.name().to_owned();
                    ProxyError::Connect { backend, cause: cause.to_string() }
                }
                DialError::Shortage(cause) => ProxyError::Shortage { cause: cause.to_string() },
            }
        })
    }

    fn current_dial(&self) -> Dial {
        let mut current = self.dial.lock();
        if let Some(dial) = &*current {
            let usable = match dial.peek() {
                Some(Ok(connection)) => !connection.ended.load(Ordering::Relaxed),
                Some(Err(_)) => false,
                None => true,
            };
            if usable {
                return dial.clone();
            }
        }
        let dial = dial(Arc::clone(&self.backend), self.windows, self.tasks.clone());
        let dial = dial.boxed().shared();
        *current = Some(dial.clone());
        dial
    }

    /// HTTP/2 needs scheme and authority; a client may have left the authority out.
    fn complete_uri(&self, request: &mut Request<Body>) {
        let uri = request.uri();
        if uri.scheme().is_some() && uri.authority().is_some() {
            return;
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.backend.address().authority())
            .path_and_query(path)
            .build();
        if let Ok(uri) = uri {
            *request.uri_mut() = uri;
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("backend", &self.backend.name()).finish_non_exhaustive()
    }
}

async fn dial(
    backend: Arc<Backend>,
    windows: Windows,
    tasks: TaskTracker,
) -> Result<Connection, DialError> {
    let started = Instant::now();
    let deadline = tokio::time::Instant::now() + CONNECT_TIMEOUT;
    let timeout = |what| {
        DialError::Fault(Fault::Timeout, format!("{what} within {CONNECT_TIMEOUT:?}").into())
    };
    let socket = match tokio::time::timeout_at(deadline, connect(backend.address())).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => {
            let cause = chain(&error).into();
            return Err(match is_shortage(&error) {
                true => DialError::Shortage(cause),
                false => DialError::Fault(Fault::Refused, cause),
            });
        }
        Err(_elapsed) => return Err(timeout("no connection")),
    };
    backend.metrics().connect.observe(started.elapsed().as_secs_f64());
    let io = Batched::with_daemon(socket);
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .max_frame_size(FRAME_LEN)
        .initial_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_header_list_size(DAEMON_HEADER_LIST_LEN)
        // A daemon sends a while to a stream that its client has cancelled, and the library takes each
        // frame of it for an error that it allows a thousand of.
        .max_local_error_reset_streams(None)
        .max_send_buffer_size(SEND_BUFFER_LEN)
        .initial_max_send_streams(usize::MAX >> 1)
        .handshake(TokioIo::new(io.clone()))
        .await;
    let (sender, connection) =
        handshake.map_err(|error| DialError::Fault(Fault::Lost, chain(&error).into()))?;
    let connected = Connection { sender, ended: Arc::default() };
    let ended = Arc::clone(&connected.ended);
    let connection = Flushing::new(connection, io.clone());
    // Not an async block: that would hold the connection twice.
    tasks.spawn(connection.map(move |result| {
        if let Err(error) = result {
            debug!(backend = backend.name(), error = %Chain(&error), "upstream connection ended");
        }
        ended.store(true, Ordering::Relaxed);
    }));
    // The system accepts for a daemon that is stopped or stuck; its SETTINGS show that it is there.
    // Once a Solve has been sent, it is too late to try another daemon.
    match tokio::time::timeout_at(deadline, io.first_read()).await {
        Ok(()) if io.received() > 0 => Ok(connected),
        Ok(()) => Err(DialError::Fault(Fault::Lost, "it closed the connection unasked".into())),
        Err(_elapsed) => Err(timeout("it accepted, but sent no SETTINGS")),
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

/// Lets the proxy's own gRPC clients call over a [`Link`].
impl tower_service::Service<Request<tonic::body::Body>> for Link {
    type Response = Response<Received>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let link = self.clone();
        async move {
            link.send(Box::new(request.map(Body::own))).await.map_err(|error| match error {
                SendError::Proxy(error) => error.into(),
                SendError::Reset(error) => error.into(),
                SendError::Cancelled => ResetError::cancel().into(),
            })
        }
        .boxed()
    }
}

/// One long-lived link per backend, for calls that belong to no build.
#[derive(Debug)]
pub struct SharedLinks {
    links: Mutex<HashMap<Arc<str>, Link>>,
    tasks: TaskTracker,
}

impl SharedLinks {
    /// No links yet; their tasks run on `tasks`.
    pub fn new(tasks: TaskTracker) -> Self {
        Self { links: Mutex::default(), tasks }
    }

    /// The link to `backend`.
    pub fn link(&self, backend: &Arc<Backend>) -> Link {
        let mut links = self.links.lock();
        match links.get(backend.name()) {
            Some(link) if Arc::ptr_eq(link.backend(), backend) => link.clone(),
            _ => {
                let link = Link::shared(Arc::clone(backend), self.tasks.clone());
                links.insert(backend.name().into(), link.clone());
                link
            }
        }
    }

    /// Lets go of links to backends that left `fleet`.
    pub fn retain(&self, fleet: &Fleet) {
        let stays = |link: &Link| {
            fleet
                .find(link.backend().name())
                .is_some_and(|backend| Arc::ptr_eq(&backend, link.backend()))
        };
        self.links.lock().retain(|_, link| stays(link));
    }
}
