//! TLS on the admin port: the handshake, and the certificate that the client shows in it.

use std::sync::Arc;

use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    connection::lost,
    error::ConnectionError,
    identity::{self, Identity},
    io::{ReadAhead, Secured, Socket},
    metrics::{Metrics, TlsSide},
    opening::{self, Opening},
    tls::{self, HANDSHAKE_TIMEOUT},
};

/// The answer to HTTP without TLS. It tells a person with a browser or curl to use `https`.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain\r\ncontent-length: 32\r\nconnection: close\r\n\r\n\
    This port speaks HTTP over TLS.\n";

/// The certificates of the admin port, and the rules that read those of its clients. Clones share them.
#[derive(Debug, Clone)]
pub struct Tls {
    server: Arc<tls::Server>,
    identities: Arc<identity::Rules>,
}

/// The certificate that a client has shown. An authority of the admin port has signed it.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    /// The name in the certificate. `None` if no rule finds one.
    pub(super) name: Option<Identity>,
}

impl Tls {
    /// TLS with the certificates of `server`. The rules `identities` find the name in a client's certificate.
    pub fn new(server: tls::Server, identities: &Arc<identity::Rules>) -> Self {
        Self { server: Arc::new(server), identities: Arc::clone(identities) }
    }

    /// Follows the files of the certificates on `tasks` until `stop`, and counts their changes in `metrics`.
    pub(super) fn follow(
        &self,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) {
        tasks.spawn(Arc::clone(&self.server).follow(TlsSide::Admin, metrics, stop.clone()));
    }

    /// Waits for the TLS handshake of a client. `None` if the client closes the connection without sending a byte,
    /// as a TCP health check does.
    pub(super) async fn accept(
        &self,
        socket: Socket,
    ) -> Result<Option<(Secured, Option<Certificate>)>, ConnectionError> {
        timeout(HANDSHAKE_TIMEOUT, self.shake(socket))
            .await
            .unwrap_or_else(|_elapsed| Err(tls::too_slow()))
    }

    async fn shake(
        &self,
        socket: Socket,
    ) -> Result<Option<(Secured, Option<Certificate>)>, ConnectionError> {
        let mut io = ReadAhead::new(socket);
        let begun = io.first_bytes(|bytes| opening::inspect(bytes, Opening::Tls)).await;
        let (opening, shown) = begun.map_err(|error| lost(&error))?;
        match opening {
            Opening::Nothing => return Ok(None),
            Opening::Tls => {}
            stranger => {
                if stranger == Opening::Http1 {
                    // It does not matter whether the client reads the answer.
                    let _ = io.finish_with(PLAIN_ANSWER).await;
                }
                let text = format!("the client began with {shown}");
                return Err(ConnectionError::new(stranger.reason(), text));
            }
        }
        let accepted = Secured::accept(io, self.server.config()).await;
        let secured = accepted.map_err(|(error, _io)| tls::failure(&error, "the client"))?;
        let chain = secured.peer_certificates();
        let certificate =
            chain.map(|chain| Certificate { name: self.identities.identify(chain).ok() });
        Ok(Some((secured, certificate)))
    }
}
