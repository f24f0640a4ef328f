//! The TLS handshake of a client, and the errors that end it.
//!
//! A handshake costs memory and a signature before the proxy knows anything of the client, so the number of
//! concurrent ones is limited. Clients share the limit: when it is reached, the address with the most handshakes
//! loses one.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use crate::{
    client::Client,
    connection::{self, CLOSING_TIMEOUT, Context, evicted, lost, quiet, turn_away},
    error::{ConnectionError, ConnectionErrorReason},
    identity::Identity,
    io::{ReadAhead, Secured, Socket},
    opening::{self, Opening, PLAIN_ANSWER},
    shares::{Limits, Shares},
    tls::{self, HANDSHAKE_TIMEOUT},
};

/// The TLS handshakes of a listener. Clones share the limit on concurrent ones.
#[derive(Debug, Clone)]
pub struct Handshakes {
    server: Arc<tls::Server>,
    under_way: Shares,
}

/// A client whose handshake has succeeded.
#[derive(Debug)]
pub(super) struct Accepted {
    /// The encrypted socket.
    pub(super) socket: Socket,
    /// The identity of the client, read from the verified certificate that it has shown.
    pub(super) identity: Option<Arc<Identity>>,
}

impl Handshakes {
    /// Handshakes with the certificates of `server`. All listeners share `under_way`, the limit on concurrent ones.
    pub fn new(server: Arc<tls::Server>, under_way: Shares) -> Self {
        Self { server, under_way }
    }

    /// A limit of `total` concurrent handshakes. One address may have all of them while no other needs any, because
    /// a hop or a NAT can make many clients one address.
    pub fn limit(total: usize) -> Shares {
        let total = u64::try_from(total).unwrap_or(u64::MAX);
        Shares::new(Limits { total, address: total, connection: 1 })
    }

    /// Waits for the handshake of `client`. `None` if there is nothing to serve. The cause has been logged and
    /// counted then.
    pub(super) async fn accept(
        &self,
        socket: Socket,
        client: &Client,
        context: &Context,
    ) -> Option<Accepted> {
        let metrics = &context.proxy.metrics;
        metrics.tls_handshakes_active.inc();
        let outcome = tokio::select! {
            outcome = timeout(HANDSHAKE_TIMEOUT, self.shake(socket, client, context)) => {
                outcome.unwrap_or_else(|_elapsed| Err(tls::too_slow()))
            }
            () = quiet(&context.drain) => Ok(None),
            () = client.active.dismissed() => Err(evicted()),
        };
        metrics.tls_handshakes_active.dec();
        outcome.unwrap_or_else(|error| {
            connection::report_error(client.connection, metrics, &error);
            None
        })
    }

    async fn shake(
        &self,
        socket: Socket,
        client: &Client,
        context: &Context,
    ) -> Result<Option<Accepted>, ConnectionError> {
        let mut io = ReadAhead::new(socket);
        let inspect = |bytes: &[u8]| opening::inspect(bytes, Opening::Tls);
        let (opening, shown) = io.first_bytes(inspect).await.map_err(|error| lost(&error))?;
        match opening {
            Opening::Nothing => return Ok(None),
            Opening::Tls => {}
            stranger => {
                let answered = io.finish_with(PLAIN_ANSWER);
                return Err(turn_away(stranger, &shown, client, context, answered).await);
            }
        }
        let Ok(mut share) = self.under_way.take(client, 1) else { return Err(too_many()) };
        let accepted = tokio::select! {
            accepted = Secured::accept(io, self.server.config()) => accepted,
            () = share.evicted() => return Err(too_many()),
        };
        drop(share);
        match accepted {
            Ok(secured) => {
                let identity = identify(secured.peer_certificates(), client, context)?;
                Ok(Some(Accepted { socket: Socket::Tls(Box::new(secured)), identity }))
            }
            Err((error, io)) => {
                let failure = tls::failure(&error, "the client");
                if failure.reason != ConnectionErrorReason::Io {
                    context.proxy.refusals.handshake(&failure, client.address);
                    // A client that sends forever is cut off.
                    let _ = timeout(CLOSING_TIMEOUT, io.linger()).await;
                }
                Err(failure)
            }
        }
    }
}

/// The identity in the first certificate of `chain`, which is verified. `None` if the client has shown none.
fn identify(
    chain: Option<&[CertificateDer<'static>]>,
    client: &Client,
    context: &Context,
) -> Result<Option<Arc<Identity>>, ConnectionError> {
    let Some(chain) = chain else { return Ok(None) };
    context.proxy.identities.identify(chain).map(|name| Some(Arc::new(name))).map_err(|error| {
        let failure = ConnectionError::new(ConnectionErrorReason::TlsNoName, error.to_string());
        context.proxy.refusals.handshake(&failure, client.address);
        failure
    })
}

fn too_many() -> ConnectionError {
    let text = "too many TLS handshakes are under way, most of them of this client's address";
    ConnectionError::new(ConnectionErrorReason::TlsBusy, text)
}
