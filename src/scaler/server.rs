//! Accepts the connections of KEDA and speaks HTTP/2 on them, with limits on all that a client can take.

use std::sync::Arc;

use futures_util::FutureExt as _;
use hyper::{rt::Executor, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::service::Service;
use crate::{
    acceptor::{Accepted, Acceptor},
    client::{ActiveStreams, Client},
    connection,
    connection_limit::ConnectionLimit,
    io::{Batched, Flushing, ReadAhead, Secured, Socket},
    tls::{self, HANDSHAKE_TIMEOUT},
    wire::externalscaler::external_scaler_server::ExternalScalerServer,
};

/// The most connections. Each replica of KEDA's operator and of its metrics server has one or two. If another
/// client at one address takes as many as it can, an eighth is left for them.
const CONNECTIONS: usize = 64;

/// The most concurrent calls of one connection: a stream for each ScaledObject, and some short calls.
const STREAMS: u32 = 128;

/// The largest request in bytes: the names and metadata of a ScaledObject.
const MAX_REQUEST: usize = 64 << 10;

/// The largest metadata of a call in bytes.
const MAX_HEADERS: u32 = 16 << 10;

/// The port of the scaler.
#[derive(Debug)]
pub(super) struct Server {
    service: ExternalScalerServer<Service>,
    tls: Option<Arc<tls::Server>>,
    limit: ConnectionLimit,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    pub(super) fn new(
        service: Service,
        tls: Option<Arc<tls::Server>>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let service = ExternalScalerServer::new(service).max_decoding_message_size(MAX_REQUEST);
        Self { service, tls, limit: ConnectionLimit::new(CONNECTIONS), tasks, stop }
    }

    /// Serves the port until the stop.
    pub(super) async fn run(self, mut acceptor: Acceptor) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = acceptor.accept(|| false) => self.admit(accepted),
            }
        }
    }

    /// Serves a connection if the limit allows one more.
    fn admit(&self, (socket, peer): Accepted) {
        let client = connection::client(peer);
        match self.limit.take(&client) {
            Ok(permit) => {
                let (service, tls) = (self.service.clone(), self.tls.clone());
                let (tasks, stop) = (self.tasks.clone(), self.stop.clone());
                self.tasks.spawn(async move {
                    tokio::select! {
                        () = serve(socket, &client, service, tls, tasks) => {}
                        // Another connection got the permit.
                        () = client.active.dismissed() => {}
                        () = stop.cancelled() => {}
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(client = ?client.address, %error, "connection to the scaler refused");
            }
        }
    }
}

async fn serve(
    socket: Socket,
    client: &Client,
    service: ExternalScalerServer<Service>,
    tls: Option<Arc<tls::Server>>,
    tasks: TaskTracker,
) {
    let socket = match secured(socket, tls).await {
        Ok(socket) => socket,
        Err(error) => {
            debug!(client = ?client.address, error, "TLS handshake failed on the scaler port");
            return;
        }
    };
    let io = Batched::with_client(socket);
    let executor = Calls { tasks, active: Arc::clone(&client.active) };
    let connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(io.clone()), TowerToHyperService::new(service));
    if let Err(error) = Flushing::new(Box::pin(connection), io).await {
        debug!(client = ?client.address, %error, "connection to the scaler failed");
    }
}

/// The socket after its TLS handshake, or the same socket without TLS.
async fn secured(socket: Socket, tls: Option<Arc<tls::Server>>) -> Result<Socket, String> {
    let Some(tls) = tls else { return Ok(socket) };
    let handshake = Secured::accept(ReadAhead::new(socket), tls.config());
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(secured)) => Ok(Socket::Tls(Box::new(secured))),
        Ok(Err((error, _io))) => Err(tls::failure(&error, "the client").text),
        Err(_elapsed) => Err(tls::too_slow().text),
    }
}

/// Runs the calls of a connection on tasks that a drain waits for, and counts the calls.
#[derive(Debug, Clone)]
struct Calls {
    tasks: TaskTracker,
    active: Arc<ActiveStreams>,
}

impl<F> Executor<F> for Calls
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, call: F) {
        let open = self.active.enter_call();
        self.tasks.spawn(call.map(move |()| drop(open)));
    }
}
