//! Who may change things: whoever reaches the control listener, and on the admin port who has a token.
//!
//! An address is no identity: a build step on a daemon with host networking has its daemon's, and loopback is also
//! a sidecar's and that of every user of the machine.

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
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use tracing::warn;

use super::{Admin, seats::Seat};
use crate::{
    metrics::{ChangeRefusal, Families},
    telemetry::Throttle,
    token::TokenFile,
};

/// How often a refusal is told, for each reason: who tries a thousand tokens a second must not fill the log.
pub(super) const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Who asks, and where.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) from: From,
    pub(super) seat: Arc<Seat>,
}

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum From {
    /// From an address, on the admin port.
    Admin(SocketAddr),
    /// On the control listener.
    Control,
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin(peer) => peer.fmt(f),
            Self::Control => f.write_str("control listener"),
        }
    }
}

/// Proof that a request may change things: a handler that takes it is not called without.
#[derive(Debug)]
pub(super) struct Allowed(pub(super) Caller);

impl FromRequestParts<Admin> for Allowed {
    type Rejection = Denied;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, Denied> {
        // The server puts it into every request.
        let caller = parts.extensions.get::<Caller>().cloned();
        let caller = caller.ok_or(Denied(ChangeRefusal::Disabled))?;
        if let From::Admin(_peer) = caller.from {
            admin.access.check(&parts.headers).await.map_err(|refusal| {
                admin.access.refused(refusal, caller.from, Instant::now());
                Denied(refusal)
            })?;
        }
        Ok(Self(caller))
    }
}

/// An answer that says so.
#[derive(Debug)]
pub(super) struct Denied(ChangeRefusal);

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        const CHALLENGE: [(axum::http::HeaderName, &str); 1] = [(WWW_AUTHENTICATE, "Bearer")];
        match self.0 {
            ChangeRefusal::Disabled => {
                let text = "this port only tells, it takes no changes: start the proxy with --control-listen \
                            unix:///PATH and ask there, or with --admin-token-file FILE and show its token\n";
                (StatusCode::FORBIDDEN, text).into_response()
            }
            ChangeRefusal::NoToken => {
                let text = "a change needs a token: send the header `Authorization: Bearer TOKEN` with the \
                            token in the file of --admin-token-file\n";
                (StatusCode::UNAUTHORIZED, CHALLENGE, text).into_response()
            }
            ChangeRefusal::WrongToken => {
                let text = "the token is not in the file of --admin-token-file; if the file has just been \
                            changed, try again in a second\n";
                (StatusCode::UNAUTHORIZED, CHALLENGE, text).into_response()
            }
        }
    }
}

/// What decides who may change things on the admin port.
#[derive(Debug)]
pub(super) struct Access {
    tokens: Option<TokenFile>,
    families: Arc<Families>,
    told: Throttle,
}

impl Access {
    pub(super) fn new(tokens: Option<TokenFile>, families: &Arc<Families>) -> Self {
        Self { tokens, families: Arc::clone(families), told: Throttle::new(TOLD_EVERY) }
    }

    async fn check(&self, headers: &HeaderMap) -> Result<(), ChangeRefusal> {
        let tokens = self.tokens.as_ref().ok_or(ChangeRefusal::Disabled)?;
        let shown = headers.get(AUTHORIZATION).ok_or(ChangeRefusal::NoToken)?.as_bytes();
        let (scheme, token) =
            shown.split_at_checked(BEARER.len()).ok_or(ChangeRefusal::WrongToken)?;
        if scheme.eq_ignore_ascii_case(BEARER) && tokens.admit(token.trim_ascii()).await {
            return Ok(());
        }
        Err(ChangeRefusal::WrongToken)
    }

    fn refused(&self, reason: ChangeRefusal, from: From, now: Instant) {
        self.families.admin_change_refused(reason);
        if let Some(held_back) = self.told.admit(reason.label(), now) {
            warn!(%reason, %from, held_back, "change refused");
        }
    }
}

const BEARER: &[u8] = b"Bearer ";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_token_changes_things_and_without_a_file_nobody_does() {
        let token = "0123456789abcdef0123456789abcdef";
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), token).expect("written");
        let open = Access::new(TokenFile::open(file.path()).ok(), &Families::new());
        let closed = Access::new(None, &Families::new());
        let (wrong, right) = (Err(ChangeRefusal::WrongToken), Ok(()));
        for (shown, expected) in [
            (None, Err(ChangeRefusal::NoToken)),
            (Some(format!("Bearer {token}")), right),
            (Some(format!("bearer  {token} ")), right),
            (Some(format!("Basic {token}")), wrong),
            (Some(token.to_owned()), wrong),
            (Some("Bearer ".to_owned()), wrong),
            (Some("B".to_owned()), wrong),
            (Some(format!("Bearer {token}0")), wrong),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(
                shown.iter().map(|shown| (AUTHORIZATION, shown.parse().expect("a header value"))),
            );
            assert_eq!(open.check(&headers).await, expected, "{shown:?}");
            assert_eq!(closed.check(&headers).await, Err(ChangeRefusal::Disabled));
        }
    }
}
