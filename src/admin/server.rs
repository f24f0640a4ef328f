//! Accepts connections of the admin port or the control listener and speaks HTTP/1 on them, within bounds: see
//! [`Seats`] for their number; a request head has a size and a time, and a body is not read.

use std::{
    fs::File,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, body::Body, http::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_service::Service as _;
use tracing::{debug, warn};

use super::{
    access::{Caller, From, TOLD_EVERY},
    seats::Seats,
    secured::Tls,
};
use crate::{
    acceptor::{Accepted, Acceptor},
    error::ConnectionError,
    io::Socket,
    metrics::{AdminClosure, Families},
    telemetry::Throttle,
};

/// How long a request's head may take, and a connection rest before it: above the interval of most scrapers, which
/// need not connect anew each time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);

/// The largest head: a token and a path need a tenth of it.
const MAX_HEAD: usize = 16 * 1024;

/// Descriptors kept for this port, for when clients and daemons have taken all others: enough for the probes of a
/// kubelet and a scrape at once.
const SPARES: usize = 8;

/// Which port is served.
#[derive(Debug)]
pub(super) enum Port {
    /// The admin port, with TLS or without.
    Admin(Option<Tls>),
    /// The control listener, whose callers may change things.
    Control,
}

/// One port and who is connected to it.
#[derive(Debug)]
pub(super) struct Server {
    router: Router,
    families: Arc<Families>,
    seats: Arc<Seats>,
    /// So that what happens to many connections is logged once in a while.
    told: Throttle,
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
            told: Throttle::new(TOLD_EVERY),
            left: Notify::new(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        }
    }

    /// Serves the `port` until the stop.
    pub(super) async fn run(self, mut acceptor: Acceptor, port: Port) {
        let server = Arc::new(self);
        let mut spares = Spares::default();
        loop {
            spares.refill();
            tokio::select! {
                () = server.stop.cancelled() => return,
                // The descriptor of a connection that has ended can become a spare.
                () = server.left.notified() => {}
                accepted = acceptor.accept(|| spares.give_one_up()) => server.admit(accepted, &port),
            }
        }
    }

    /// Serves a new connection if there is a seat for it.
    fn admit(self: &Arc<Self>, (socket, peer): Accepted, port: &Port) {
        let (from, tls) = match (port, peer) {
            (Port::Control, _) => (From::Control, None),
            (Port::Admin(tls), Some(peer)) => (From::Admin(peer), tls.clone()),
            // The admin port is never a Unix socket.
            (Port::Admin(_), None) => return,
        };
        let (server, Some(caller)) = (Arc::clone(self), self.seat(from)) else { return };
        match tls {
            None => self.tasks.spawn(server.serve(socket, caller)),
            Some(tls) => self.tasks.spawn(server.serve_secured(socket, tls, caller)),
        };
    }

    /// A seat for a new connection, if there is one for it.
    fn seat(&self, from: From) -> Option<Caller> {
        let ip = match from {
            From::Admin(peer) => Some(SocketAddr::ip(&peer)),
            From::Control => None,
        };
        let (seat, closed) = self.seats.take(ip, Instant::now());
        if let Some(closed) = closed {
            self.closed(closed, from);
        }
        Some(Caller { from, seat: Arc::new(seat?), certificate: None })
    }

    /// Serves a connection after its TLS handshake.
    async fn serve_secured(self: Arc<Self>, socket: Socket, tls: Tls, mut caller: Caller) {
        let seat = Arc::clone(&caller.seat);
        let accepted = tokio::select! {
            accepted = tls.accept(socket) => accepted,
            _closed = seat.over() => Ok(None),
            () = self.stop.cancelled() => Ok(None),
        };
        drop(seat);
        match accepted {
            Ok(Some((secured, certificate))) => {
                caller.certificate = certificate.map(Arc::new);
                return self.serve(Socket::Tls(Box::new(secured)), caller).await;
            }
            Ok(None) => {}
            Err(ConnectionError { reason, text }) => {
                let reason = reason.label();
                if let Some(held_back) = self.told.admit(reason, Instant::now()) {
                    let from = caller.from;
                    warn!(reason, %from, error = text, held_back, "TLS handshake failed on the admin port");
                }
            }
        }
        drop(caller);
        self.left.notify_one();
    }

    async fn serve(self: Arc<Self>, socket: Socket, caller: Caller) {
        let Caller { seat, from, .. } = caller.clone();
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
            .serve_connection(TokioIo::new(socket), service);
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
        if let Some(held_back) = self.told.admit(reason.label(), Instant::now()) {
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
