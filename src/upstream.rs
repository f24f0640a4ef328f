//! One HTTP/2 connection to a daemon. It is dialled when needed, and again once it takes no more streams. A connection that
//! a build has left serves one more build.
//!
//! A [`Link`] belongs to one binding or to the fleet's own calls, so a lost connection costs one build. A request is
//! sent again only if the library returns it unsent.

mod call;
mod dial;
mod links;
mod spare;

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
    dial::{Connection, Dial, Dialer, Owner, Windows},
    spare::Spares,
};
pub use self::{
    dial::CONNECT_TIMEOUT,
    links::{Connections, SharedLinks},
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
    /// The backend cannot be reached or was lost, or the proxy lacks something.
    Proxy(ProxyError),
    /// The daemon reset the stream. The client gets the same reset.
    Reset(h2::Error),
    /// The client reset the stream or went away, so the proxy reset the stream to the daemon.
    Cancelled,
}

/// What a call holds until its answer has been read.
type Guard = Arc<dyn Any + Send + Sync>;

/// A connection to one backend, opened when it is first needed. Clones share it.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
    /// Every answer that comes over this clone holds it.
    guard: Option<Guard>,
}

/// The connection of a link.
enum Current {
    Open(Connection),
    Opening(Dial),
}

struct Inner {
    dialer: Dialer,
    dial: Mutex<Option<Dial>>,
}

impl Link {
    /// A link of the proxy's own that is not open yet. Its tasks run on `tasks`.
    pub fn new(backend: Arc<Backend>, tasks: TaskTracker) -> Self {
        let windows = Windows { stream: STREAM_WINDOW, connection: CONNECTION_WINDOW };
        Self::with(Dialer { backend, windows, tasks, owner: None, spares: None })
    }

    fn with(dialer: Dialer) -> Self {
        Self::of(Arc::new(Inner { dialer, dial: Mutex::default() }))
    }

    fn of(inner: Arc<Inner>) -> Self {
        Self { inner, guard: None }
    }

    /// The same link for one call, whose answer holds `guard` until it has been read.
    fn guarded(&self, guard: Guard) -> Self {
        Self { inner: Arc::clone(&self.inner), guard: Some(guard) }
    }

    /// The backend at the other end.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.inner.dialer.backend
    }

    /// Opens the connection, unless it is open.
    ///
    /// # Errors
    /// [`ProxyError::Connect`] if the backend fails; it is then ejected. [`ProxyError::Shortage`] if the proxy lacks
    /// something.
    pub async fn open(&self) -> Result<(), ProxyError> {
        self.connection().await.map(drop)
    }

    /// Gives up the connection. It closes when its last stream has ended.
    pub fn release(&self) {
        self.inner.dial.lock().take();
    }

    /// Sends a request and waits for the headers of the response. The wait has no limit, because builds are silent for
    /// hours. The request is boxed so that its memory is freed before the response comes.
    ///
    /// # Errors
    /// See [`SendError`]. A request that was handed to the connection is never sent again.
    pub async fn send(
        &self,
        mut request: Box<Request<Body>>,
    ) -> Result<Response<Received>, SendError> {
        self.complete_uri(&mut request);
        // A connection can close (GOAWAY) between the check and the send. The library then returns the request unsent,
        // and it goes out on a new connection, as in grpc-go.
        let mut attempts = 0;
        loop {
            let connection = self.connection().await.map_err(SendError::Proxy)?;
            attempts += 1;
            match call(&connection, request, &self.inner.dialer.tasks).await {
                Ok(response) => {
                    connection.note_answer();
                    let guard = self.guard.clone().unwrap_or(connection);
                    return Ok(response.map(|stream| Received::new(stream, Some(guard))));
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

    async fn connection(&self) -> Result<Connection, ProxyError> {
        let dial = match self.current() {
            Current::Open(connection) => return Ok(connection),
            Current::Opening(dial) => dial,
        };
        match dial.await {
            Ok(connection) => Ok(connection),
            Err(error) => {
                self.release();
                Err(error.report(self.backend()))
            }
        }
    }

    /// The connection, which is opened anew if it can no longer be used.
    fn current(&self) -> Current {
        let mut current = self.inner.dial.lock();
        if let Some(dial) = &*current {
            match dial.peek() {
                Some(Ok(connection)) if !connection.has_ended() => {
                    return Current::Open(Arc::clone(connection));
                }
                Some(_) => {}
                None => return Current::Opening(dial.clone()),
            }
        }
        Current::Opening(current.insert(self.inner.dialer.dial()).clone())
    }

    /// Adds the scheme and the authority, which HTTP/2 requires. A client may have left out the authority.
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
