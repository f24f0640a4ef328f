//! The rights of clients on the admin port.
//!
//! A client of the control listener may do everything. On the admin port, only a client with a token, or with a
//! certificate of a listed name, may change things. Everybody may read, unless reading is restricted to clients
//! with a token or with any certificate that the port's authorities have signed.
//!
//! An address proves no identity: a build step on a daemon with host networking has the address of its daemon, and
//! a loopback address may be that of a sidecar or of any user of the machine.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::FromRequestParts,
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, ORIGIN, WWW_AUTHENTICATE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use tracing::warn;

use super::{Admin, seats::Seat, secured::Certificate};
use crate::{
    access::Pattern,
    metrics::{AdminRefusal, Families},
    telemetry::Throttle,
    token::{AdminTokens, TokenFile, bearer},
};

/// How often a refusal is logged, for each reason. A client that tries a thousand tokens a second must not fill the
/// log.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The client of a request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) from: Peer,
    pub(super) seat: Arc<Seat>,
    /// The certificate that the client has shown in its TLS handshake.
    pub(super) certificate: Option<Arc<Certificate>>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Peer {
    /// A client at this address, on the admin port.
    Admin(SocketAddr),
    /// A client on the control listener.
    Control,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(peer) => peer.fmt(f),
            Self::Control => f.write_str("control listener"),
        }
    }
}

/// Proof that a request may change things. A handler with this argument is not called for other requests.
#[derive(Debug)]
pub(super) struct Allowed(pub(super) Caller);

impl FromRequestParts<Admin> for Allowed {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Denied> {
        let caller = caller(parts)?;
        // A browser shows its certificate, and reaches a forwarded control listener, for any web page that asks for a
        // change. It then says which page that is; programs do not.
        let checked = match parts.headers.contains_key(ORIGIN) {
            true => Err(AdminRefusal::WebPage),
            false => admin.access.check_change(&caller, &parts.headers).await,
        };
        admin.access.note(checked, caller.from)?;
        Ok(Self(caller))
    }
}

/// Proof that a request may read. A handler with this argument is not called for other requests.
#[derive(Debug)]
pub(super) struct Reader;

impl FromRequestParts<Admin> for Reader {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Denied> {
        let caller = caller(parts)?;
        let checked = admin.access.check_reading(&caller, &parts.headers).await;
        admin.access.note(checked, caller.from)?;
        Ok(Self)
    }
}

/// Whether a request may read. Probes have no right to read and get an answer, but without details.
#[derive(Debug)]
pub(super) struct MayRead(pub(super) bool);

impl FromRequestParts<Admin> for MayRead {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Denied> {
        let caller = caller(parts)?;
        Ok(Self(admin.access.check_reading(&caller, &parts.headers).await.is_ok()))
    }
}

/// The client of a request, which the server adds to each request.
fn caller(parts: &Parts) -> Result<Caller, Denied> {
    parts.extensions.get::<Caller>().cloned().ok_or(Denied(AdminRefusal::Disabled))
}

/// The response to a request that is refused.
#[derive(Debug)]
pub(super) struct Denied(AdminRefusal);

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        const CHALLENGE: [(axum::http::HeaderName, &str); 1] = [(WWW_AUTHENTICATE, "Bearer")];
        match self.0 {
            AdminRefusal::Disabled => {
                let text = "this port takes no changes: start the proxy with --control-listen \
                            unix:///PATH and ask there, with --admin-token-file FILE and show its token, or \
                            with --admin-tls-dir DIR and --admin-client NAME and show a certificate\n";
                (StatusCode::FORBIDDEN, text).into_response()
            }
            AdminRefusal::NoToken => {
                let text = "this request needs a token or a certificate: send the header `Authorization: \
                            Bearer TOKEN` with a token in the file of --admin-token-file, or show a \
                            certificate that a CA in --admin-tls-dir has signed\n";
                (StatusCode::UNAUTHORIZED, CHALLENGE, text).into_response()
            }
            AdminRefusal::WebPage => {
                let text = "a web page may change nothing here: send the request without the header `Origin`\n";
                (StatusCode::FORBIDDEN, text).into_response()
            }
            AdminRefusal::WrongClient => {
                let text = "the name in this certificate is not listed by --admin-client, so the client may \
                            read and change nothing\n";
                (StatusCode::FORBIDDEN, text).into_response()
            }
            AdminRefusal::WrongToken => {
                let text = "the token is not in the file of --admin-token-file; if the file has just been \
                            changed, try again in a second\n";
                (StatusCode::UNAUTHORIZED, CHALLENGE, text).into_response()
            }
        }
    }
}

/// The rights on the admin port, as the configuration says.
#[derive(Debug, Default)]
pub struct Rights {
    /// The tokens with which a client may do everything.
    pub tokens: Option<TokenFile<AdminTokens>>,
    /// The names of certificates with which a client may do everything.
    pub clients: Vec<Pattern>,
    /// Whether a client needs a token or any certificate to read.
    pub restrict_reading: bool,
}

/// Checks the rights of requests on the admin port, and counts and logs refusals.
#[derive(Debug)]
pub(super) struct Access {
    rights: Rights,
    families: Arc<Families>,
    logged: Throttle,
}

impl Access {
    pub(super) fn new(rights: Rights, families: &Arc<Families>) -> Self {
        Self { rights, families: Arc::clone(families), logged: Throttle::new(LOG_INTERVAL) }
    }

    async fn check_reading(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
    ) -> Result<(), AdminRefusal> {
        if !self.rights.restrict_reading || caller.certificate.is_some() {
            return Ok(());
        }
        self.check_change(caller, headers).await
    }

    async fn check_change(&self, caller: &Caller, headers: &HeaderMap) -> Result<(), AdminRefusal> {
        if let Peer::Control = caller.from {
            return Ok(());
        }
        let Rights { tokens, clients, .. } = &self.rights;
        let certificate = caller.certificate.as_deref();
        let name = certificate.and_then(|certificate| certificate.name.as_ref());
        if name.is_some_and(|name| clients.iter().any(|client| client.fits(name.name()))) {
            return Ok(());
        }
        match (tokens, headers.get(AUTHORIZATION)) {
            (Some(tokens), Some(shown)) => check_token(tokens, shown.as_bytes()).await,
            (None, _) if clients.is_empty() => Err(AdminRefusal::Disabled),
            _ if certificate.is_some() => Err(AdminRefusal::WrongClient),
            _ => Err(AdminRefusal::NoToken),
        }
    }

    /// Passes `checked` on. A refusal is counted, and logged at a limited rate.
    fn note(&self, checked: Result<(), AdminRefusal>, from: Peer) -> Result<(), Denied> {
        checked.map_err(|reason| {
            self.families.admin_request_refused(reason);
            if let Some(held_back) = self.logged.admit(reason.label(), Instant::now()) {
                warn!(%reason, %from, held_back, "admin request refused");
            }
            Denied(reason)
        })
    }
}

async fn check_token(tokens: &TokenFile<AdminTokens>, shown: &[u8]) -> Result<(), AdminRefusal> {
    let token = bearer(shown).ok_or(AdminRefusal::WrongToken)?;
    if tokens.current().await.admit(token) { Ok(()) } else { Err(AdminRefusal::WrongToken) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::seats::Seats, identity::Identity};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn access(tokens: bool, clients: &[&str], restrict_reading: bool) -> Access {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), TOKEN).expect("written");
        let tokens = tokens.then(|| TokenFile::open(file.path()).expect("a token"));
        let clients = clients.iter().map(|name| Pattern::parse(name).expect("a pattern")).collect();
        Access::new(Rights { tokens, clients, restrict_reading }, &Families::new())
    }

    /// A client on the admin port. With `Some(None)` it has a certificate in which no rule finds a name.
    fn caller(certificate: Option<Option<&str>>) -> Caller {
        let (seat, _closed) = Arc::new(Seats::default()).take(None, Instant::now());
        let named = |name: Option<&str>| Certificate { name: name.map(Identity::named) };
        Caller {
            from: Peer::Admin(([127, 0, 0, 1], 1).into()),
            seat: Arc::new(seat.expect("a seat")),
            certificate: certificate.map(named).map(Arc::new),
        }
    }

    fn shown(token: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.extend(token.iter().map(|shown| (AUTHORIZATION, shown.parse().expect("a header"))));
        headers
    }

    #[tokio::test]
    async fn only_the_right_token_changes_things_and_without_a_file_nobody_does() {
        let (open, closed) = (access(true, &[], false), access(false, &[], false));
        let (wrong, right) = (Err(AdminRefusal::WrongToken), Ok(()));
        for (token, expected) in [
            (None, Err(AdminRefusal::NoToken)),
            (Some(format!("Bearer {TOKEN}")), right),
            (Some(format!("bearer  {TOKEN} ")), right),
            (Some(format!("Basic {TOKEN}")), wrong),
            (Some(TOKEN.to_owned()), wrong),
            (Some("Bearer ".to_owned()), wrong),
            (Some("B".to_owned()), wrong),
            (Some(format!("Bearer {TOKEN}0")), wrong),
        ] {
            let headers = shown(token.as_deref());
            assert_eq!(open.check_change(&caller(None), &headers).await, expected, "{token:?}");
            let refused = closed.check_change(&caller(None), &headers).await;
            assert_eq!(refused, Err(AdminRefusal::Disabled));
        }
    }

    #[tokio::test]
    async fn a_certificate_changes_things_by_its_name_and_reads_without_one() {
        let access = access(false, &["operator-*"], true);
        let none = shown(None);
        for (certificate, change, reading) in [
            (None, Err(AdminRefusal::NoToken), Err(AdminRefusal::NoToken)),
            (Some(None), Err(AdminRefusal::WrongClient), Ok(())),
            (Some(Some("team-a")), Err(AdminRefusal::WrongClient), Ok(())),
            (Some(Some("operator-1")), Ok(()), Ok(())),
        ] {
            let caller = caller(certificate);
            assert_eq!(access.check_change(&caller, &none).await, change, "{certificate:?}");
            assert_eq!(access.check_reading(&caller, &none).await, reading, "{certificate:?}");
        }
        let control = Caller { from: Peer::Control, ..caller(None) };
        assert_eq!(access.check_reading(&control, &none).await, Ok(()));
    }

    #[tokio::test]
    async fn reading_that_is_restricted_takes_a_token() {
        let (open, restricted) = (access(true, &[], false), access(true, &[], true));
        let caller = caller(None);
        assert_eq!(open.check_reading(&caller, &shown(None)).await, Ok(()));
        let refused = restricted.check_reading(&caller, &shown(None)).await;
        assert_eq!(refused, Err(AdminRefusal::NoToken));
        let token = shown(Some(&format!("Bearer {TOKEN}")));
        assert_eq!(restricted.check_reading(&caller, &token).await, Ok(()));
    }
}
