//! One HTTP/2 connection to a daemon: dial, send, and dial again once it takes no more streams.
//!
//! A [`Link`] belongs to one binding (or to the fleet's own calls), so a lost connection costs one
//! build. A request is sent again only when the library hands it back unsent.

mod call;
mod dial;
mod links;

use std::{
    any::Any,
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use http::{Request, Response, Uri};
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::{
    call::{CallError, call},
    dial::{Dial, Dialer, Owner, Sender, Windows},
};
pub use self::{
    dial::CONNECT_TIMEOUT,
    links::{SharedLinks, client_connections},
};
use crate::{
    error::{ProxyError, chain},
    fleet::{Backend, Fault},
    http2_limits::{CONNECTION_WINDOW, STREAM_WINDOW},
    received::Received,
    relay::{Body, Failure, ResetError},
};

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

/// What a call holds until its answer has been read.
type Hold = Arc<dyn Any + Send + Sync>;

/// A connection to one backend, opened when first needed. Clones share it.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
    /// Held by each answer that comes over this clone.
    hold: Option<Hold>,
}

struct Inner {
    dialer: Dialer,
    dial: Mutex<Option<Dial>>,
}

impl Link {
    /// A link of the proxy's own that is not yet open; its tasks run on `tasks`.
    pub fn new(backend: Arc<Backend>, tasks: TaskTracker) -> Self {
        let windows = Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };
        Self::with_windows(backend, windows, tasks, None)
    }

    fn with_windows(
        backend: Arc<Backend>,
        windows: Windows,
        tasks: TaskTracker,
        owner: Option<Owner>,
    ) -> Self {
        let dialer = Dialer { backend, windows, tasks, owner };
        Self::of(Arc::new(Inner { dialer, dial: Mutex::default() }))
    }

    fn of(inner: Arc<Inner>) -> Self {
        Self { inner, hold: None }
    }

    /// The same link for one call, which holds `hold` until its answer has been read.
    fn held(&self, hold: Hold) -> Self {
        Self { inner: Arc::clone(&self.inner), hold: Some(hold) }
    }

    /// The backend it leads to.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.inner.dialer.backend
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
        self.inner.dial.lock().take();
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
            match call(sender, request, &self.inner.dialer.tasks).await {
                Ok(response) => {
                    let hold = self.hold.clone();
                    return Ok(response.map(|stream| Received::new(stream, hold)));
                }
                Err(CallError::Unsent(unsent, _)) if attempts < 3 => {
                    debug!(
                        backend = self.backend().name(),
                        "upstream connection takes no more streams"
                    );
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
        let (backend, cause) = (self.backend().name().to_owned(), chain(&error));
        match Failure::of(&error) {
            Failure::Reset(_) => SendError::Reset(error),
            Failure::Cancelled => SendError::Cancelled,
            Failure::Refused => SendError::Proxy(ProxyError::BadAnswer { backend, cause }),
            Failure::Lost => {
                self.backend().report_fault(Fault::Lost, &cause, Instant::now());
                SendError::Proxy(ProxyError::BackendLost { backend, cause })
            }
        }
    }

    async fn sender(&self) -> Result<Sender, ProxyError> {
        match self.current_dial().await {
            Ok(connection) => Ok(connection.sender),
            Err(error) => {
                self.release();
                Err(error.report(self.backend()))
            }
        }
    }

    fn current_dial(&self) -> Dial {
        let mut current = self.inner.dial.lock();
        if let Some(dial) = &*current {
            let usable = match dial.peek() {
                Some(Ok(connection)) => !connection.has_ended(),
                Some(Err(_)) => false,
                None => true,
            };
            if usable {
                return dial.clone();
            }
        }
        current.insert(self.inner.dialer.dial()).clone()
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
            .authority(self.backend().address().authority())
            .path_and_query(path)
            .build();
        if let Ok(uri) = uri {
            *request.uri_mut() = uri;
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("dialer", &self.dialer).finish_non_exhaustive()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("backend", &self.backend().name()).finish_non_exhaustive()
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
