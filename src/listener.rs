//! Accepts client connections, within a limit, until the proxy drains.

mod handshake;
mod proxy_header;

use std::{io, net::SocketAddr};

use futures_util::FutureExt as _;
use tracing::{debug, info};

use self::handshake::Accepted;
pub use self::{handshake::Handshakes, proxy_header::Hops};
use crate::{
    acceptor::Acceptor,
    address::Address,
    client::Client,
    connection::{self, Context},
    connection_limit::{ConnectionLimit, ConnectionPermit, TooManyConnections},
    io::Socket,
};

/// A bound socket to which clients connect.
#[derive(Debug)]
pub struct Listener(Acceptor);

/// What a new connection must pass before it is served.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The limit on connections, which all listeners share.
    pub limit: ConnectionLimit,
    /// The TLS handshakes, if clients speak TLS.
    pub handshakes: Option<Handshakes>,
    /// The hops in front that send the addresses of their clients, if there are any.
    pub hops: Option<Hops>,
}

/// Why the proxy cannot listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}")]
pub struct ListenError {
    address: Address,
    source: io::Error,
}

impl Listener {
    /// Binds `address`. A Unix socket left behind by a process that is gone is replaced.
    ///
    /// # Errors
    /// The address is in use, unknown or not permitted.
    pub async fn bind(address: &Address) -> Result<Self, ListenError> {
        let failed = |source| ListenError { address: address.clone(), source };
        Acceptor::bind(address).await.map(Self).map_err(failed)
    }

    /// The address, with the real port in place of port 0.
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    /// Accepts connections until the drain begins. A client that gets no permit is refused after a few seconds, and those
    /// behind it wait as long.
    pub async fn run(self, context: Context, admission: Admission) {
        let pool = context.proxy.metrics.pool();
        let tls = admission.handshakes.is_some();
        info!(address = %self.address(), port_name = "grpc", pool, tls, "listening");
        tokio::select! {
            () = context.drain.cancelled() => {}
            () = accept_all(self.0, &context, &admission) => {}
        }
    }
}

async fn accept_all(mut acceptor: Acceptor, context: &Context, admission: &Admission) {
    loop {
        let (socket, peer) = acceptor.accept(|| false).await;
        receive(socket, peer, context, admission).await;
    }
}

/// Serves a connection. If a hop is in front, its header tells the address of the client first.
async fn receive(
    socket: Socket,
    peer: Option<SocketAddr>,
    context: &Context,
    admission: &Admission,
) {
    let client = connection::client(peer);
    let Some(hops) = admission.hops.as_ref().filter(|hops| hops.have(&client)) else {
        return serve(socket, client, context, admission).await;
    };
    // This runs in a task, so that the next connection does not wait for this header.
    let Some(waiting) = hops.wait().await else { return };
    let (task, admission) = (context.clone(), admission.clone());
    context.tasks.spawn(async move {
        if let Some((socket, client)) = proxy_header::resolve(socket, client, &task).await {
            serve(socket, client, &task, &admission).await;
        }
        drop(waiting);
    });
}

/// Serves the client if it gets a permit, and refuses it otherwise.
async fn serve(socket: Socket, client: Client, context: &Context, admission: &Admission) {
    let Admission { limit, handshakes, hops: _ } = admission;
    match limit.wait(&client).await {
        Ok(permit) => {
            if permit.evicted_another() {
                context.proxy.refusals.full(limit.limit(), client.address, None);
            }
            match handshakes {
                None => {
                    context.tasks.spawn(connection::serve(socket, client, permit, context.clone()))
                }
                Some(handshakes) => context.tasks.spawn(serve_secured(
                    handshakes.clone(),
                    socket,
                    client,
                    permit,
                    context.clone(),
                )),
            };
        }
        Err(cause) => {
            context.proxy.refusals.full(limit.limit(), client.address, Some(cause));
            if let Some(answering) = limit.answer_permit() {
                let refusing = refuse(handshakes.clone(), socket, client, cause, context.clone());
                context.tasks.spawn(refusing.map(move |()| drop(answering)));
            }
        }
    }
}

async fn serve_secured(
    handshakes: Handshakes,
    socket: Socket,
    mut client: Client,
    mut permit: ConnectionPermit,
    context: Context,
) {
    // Boxed, so that an open connection does not keep the memory of its handshake.
    let accepted = Box::pin(handshakes.accept(socket, &client, &context)).await;
    if let Some(Accepted { socket, identity }) = accepted {
        let name = identity.as_deref().map(tracing::field::display);
        debug!(connection = client.connection, identity = name, "TLS handshake done");
        client.identity = identity;
        let counted = client.identity.as_ref().map_or(Ok(()), |name| permit.count_for(name));
        match counted {
            Ok(()) => connection::serve(socket, client, permit, context).await,
            Err(cause) => {
                let limit = permit.limit();
                context.proxy.refusals.full(limit.limit(), client.address, Some(cause));
                if let Some(answering) = limit.answer_permit() {
                    // Boxed, too: few connections are refused.
                    Box::pin(connection::refuse(socket, client, cause, context)).await;
                    drop(answering);
                }
            }
        }
    }
}

async fn refuse(
    handshakes: Option<Handshakes>,
    socket: Socket,
    client: Client,
    cause: TooManyConnections,
    context: Context,
) {
    let socket = match handshakes {
        None => socket,
        Some(handshakes) => {
            let accepted = Box::pin(handshakes.accept(socket, &client, &context)).await;
            let Some(accepted) = accepted else { return };
            accepted.socket
        }
    };
    connection::refuse(socket, client, cause, context).await;
}
