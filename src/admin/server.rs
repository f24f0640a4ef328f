//! Accepts connections of the admin port or the control listener and speaks HTTP/1 on them, within bounds: see
//! [`Seats`] for their number; a request head has a size and a time, and a body is not read.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Notify,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service as _;
use tracing::{debug, warn};

use super::{
    access::{Caller, From, TOLD_EVERY},
    seats::Seats,
};
use crate::{
    descriptors::{ACCEPT_PAUSE, is_shortage},
    metrics::{AdminClosure, Families},
    telemetry::Throttle,
    upstream::configure_tcp,
};

/// How long a request's head may take, and a connection rest before it: above the interval of most scrapers, which
/// need not connect anew each time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);

/// The largest head: a token and a path need a tenth of it.
const MAX_HEAD: usize = 16 * 1024;

/// Descriptors kept for this port, for when clients and daemons have taken all others: enough for the probes of a
/// kubelet and a scrape at once.
const SPARES: usize = 8;

/// What is listened on.
#[derive(Debug)]
pub(super) enum Port {
    /// The admin port.
    Admin(TcpListener),
    /// The control listener, on loopback.
    Loopback(TcpListener),
    /// The control listener, as a file.
    File(UnixListener),
}

/// One port and who is connected to it.
#[derive(Debug)]
pub(super) struct Server {
    router: Router,
    families: Arc<Families>,
    seats: Arc<Seats>,
    /// So that a crowd is told of once in a while.
    crowded: Throttle,
    /// A connection has ended.
    left: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    pub(super) fn new(
        router: Router,
        families: &Arc<Families>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            router,
            families: Arc::clone(families),
            seats: Arc::default(),
            crowded: Throttle::new(TOLD_EVERY),
            left: Notify::new(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        }
    }

    /// Serves the port until the stop.
    pub(super) async fn run(self, port: Port) {
        let server = Arc::new(self);
        let mut spares = Spares::default();
        spares.refill();
        loop {
            let accepted = tokio::select! {
                () = server.stop.cancelled() => return,
                () = server.left.notified() => {
                    spares.refill();
                    continue;
                }
                accepted = server.accept(&port) => accepted,
            };
            let Err(error) = accepted else {
                spares.refill();
                continue;
            };
            if is_shortage(&error) && spares.give_one_up() {
                continue;
            }
            debug!(%error, "accept failed on the admin port");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }

    async fn accept(self: &Arc<Self>, port: &Port) -> io::Result<()> {
        match port {
            Port::Admin(listener) => {
                let (stream, peer) = listener.accept().await?;
                // A client that is gone already; its connection fails at once.
                let _ = configure_tcp(&stream);
                self.seat(stream, From::Admin(peer));
            }
            Port::Loopback(listener) => self.seat(listener.accept().await?.0, From::Control),
            Port::File(listener) => self.seat(listener.accept().await?.0, From::Control),
        }
        Ok(())
    }

    /// Serves a new connection if there is a seat for it.
    fn seat<S>(self: &Arc<Self>, stream: S, from: From)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ip = match from {
            From::Admin(peer) => Some(SocketAddr::ip(&peer)),
            From::Control => None,
        };
        let (seat, closed) = self.seats.take(ip, Instant::now());
        if let Some(closed) = closed {
            self.closed(closed, from);
        }
        if let Some(seat) = seat {
            let caller = Caller { from, seat: Arc::new(seat) };
            self.tasks.spawn(Arc::clone(self).serve(stream, caller));
        }
    }

    async fn serve<S>(self: Arc<Self>, stream: S, caller: Caller)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Caller { seat, from } = caller.clone();
        let router = self.router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            caller.seat.asked(Instant::now());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(caller.clone());
            let mut router = router.clone();
            async move { router.call(request).await }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = connection => {
                if let Err(error) = served {
                    debug!(%from, %error, "admin connection failed");
                }
            }
            closed = seat.over() => {
                if let Some(closed) = closed {
                    self.closed(closed, from);
                }
            }
            () = self.stop.cancelled() => {}
        }
        self.left.notify_one();
    }

    fn closed(&self, reason: AdminClosure, from: From) {
        self.families.admin_connection_closed(reason);
        if let Some(held_back) = self.crowded.admit(reason.label(), Instant::now()) {
            warn!(%reason, %from, held_back, "admin connection closed");
        }
    }
}

/// Descriptors that are open for nothing, to be given up when there are no others.
#[derive(Debug, Default)]
struct Spares(Vec<File>);

impl Spares {
    fn refill(&mut self) {
        while self.0.len() < SPARES {
            match File::open("/dev/null") {
                Ok(spare) => self.0.push(spare),
                // There are none to be had now.
                Err(_none) => return,
            }
        }
    }

    fn give_one_up(&mut self) -> bool {
        self.0.pop().is_some()
    }
}
