//! Accepts connections to the admin port or the control listener, and speaks HTTP/1 on them.
//!
//! All use of memory and time is limited: [`Seats`] limits the number of connections, the head of a request has a
//! largest size and a timeout, and bodies are not read.

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
    access::{Caller, LOG_INTERVAL, Peer},
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

/// How long the head of a request may take, including the pause before it. This is longer than the interval of most
/// scrapers, so they can keep their connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(45);

/// The largest head of a request. A token and a path need a tenth of this.
const MAX_HEAD: usize = 16 * 1024;

/// The descriptors that are kept for this port, for the case that clients and daemons have taken all others. They
/// are enough for the probes of a kubelet and a scrape at the same time.
const SPARES: usize = 8;

/// The port that is served.
#[derive(Debug)]
pub(super) enum Port {
    /// The admin port, with TLS or without.
    Admin(Option<Tls>),
    /// The control listener, whose callers may change things.
    Control,
}

/// Serves one port.
#[derive(Debug)]
pub(super) struct Server {
    router: Router,
    families: Arc<Families>,
    seats: Arc<Seats>,
    /// Limits how often closed connections and failed handshakes are logged.
    logged: Throttle,
    /// Notified when a connection has ended.
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
            logged: Throttle::new(LOG_INTERVAL),
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
            (Port::Control, _) => (Peer::Control, None),
            (Port::Admin(tls), Some(peer)) => (Peer::Admin(peer), tls.clone()),
            // The admin port is never a Unix socket.
            (Port::Admin(_), None) => return,
        };
        let (server, Some(caller)) = (Arc::clone(self), self.seat(from)) else { return };
        match tls {
            None => self.tasks.spawn(server.serve(socket, caller)),
            Some(tls) => self.tasks.spawn(server.serve_secured(socket, tls, caller)),
        };
    }

    /// Takes a seat for a new connection. `None` if there is none.
    fn seat(&self, from: Peer) -> Option<Caller> {
        let ip = match from {
            Peer::Admin(peer) => Some(SocketAddr::ip(&peer)),
            Peer::Control => None,
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
                if let Some(held_back) = self.logged.admit(reason, Instant::now()) {
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

    fn closed(&self, reason: AdminClosure, from: Peer) {
        self.families.admin_connection_closed(reason);
        if let Some(held_back) = self.logged.admit(reason.label(), Instant::now()) {
            warn!(%reason, %from, held_back, "admin connection closed");
        }
    }
}

/// Descriptors of `/dev/null`, each of which is closed to accept a connection when there are no other descriptors.
#[derive(Debug, Default)]
struct Spares(Vec<File>);

impl Spares {
    fn refill(&mut self) {
        while self.0.len() < SPARES {
            match File::open("/dev/null") {
                Ok(spare) => self.0.push(spare),
                // No descriptor is free now.
                Err(_none) => return,
            }
        }
    }

    fn give_one_up(&mut self) -> bool {
        self.0.pop().is_some()
    }
}
