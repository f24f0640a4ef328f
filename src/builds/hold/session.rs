//! A Session that waits: the proxy begins the HTTP/2 connection inside it, and the daemon continues it.

use bytes::{Buf as _, Bytes};
use http::Response;
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::{
    answer,
    preface::{self, PrefaceStripper},
};
use crate::{
    builds::{
        parked::{Ended, ParkedBytes},
        refuse,
        session::{bind_session, join_session},
    },
    call::{Call, CallResult},
    error::{ProxyError, chain, ok_response},
    ids::{BindingKey, TraceId},
    ownership::Owned,
    proxy::Proxy,
    relay::{Body, MessageSender, ResetError},
};

/// How many bytes a waiting Session may send. A client of BuildKit sends 67 and then waits for its daemon.
pub(in crate::builds) const KEPT_LEN: usize = 64 << 10;

/// A Session that waits.
pub(in crate::builds) struct Session {
    pub(in crate::builds) proxy: Proxy,
    pub(in crate::builds) call: Call,
    pub(in crate::builds) key: BindingKey,
    pub(in crate::builds) trace: Option<TraceId>,
    pub(in crate::builds) owned: Option<Owned>,
    /// What its client has sent so far.
    pub(in crate::builds) kept: ParkedBytes,
    /// When the Session is placed on its own, if its Solve has not come.
    pub(in crate::builds) unseen_until: Instant,
}

impl Session {
    /// Holds the Session until it is bound.
    ///
    /// # Errors
    /// There is no room for the metadata of the call.
    pub(in crate::builds) fn hold(mut self) -> CallResult {
        self.kept.charge_metadata(&self.call.parts.headers)?;
        let proxy = self.proxy.clone();
        Ok(answer(&proxy, preface::opening(), |sender| self.go_on(sender)))
    }

    async fn go_on(self, sender: MessageSender) -> CallResult {
        let Self { proxy, mut call, key, trace, owned, mut kept, unseen_until } = self;
        let bound = tokio::select! {
            biased;
            bound = bind_session(&proxy, &key, trace, &call.client, unseen_until) => bound,
            ended = kept.fill(&mut call.body) => match ended {
                Ok(Ended::HalfClosed) => return Ok(ok_response()),
                Ok(Ended::Reset) => return Err(ResetError::cancel().into()),
                Err(error) => Err(error),
            }
        };
        let bound = match bound {
            Ok(bound) => bound,
            Err(error) => return refuse::session(call.body, error).await,
        };
        let backend = bound.0.binding.link.backend().name().to_owned();
        let received = preface::without_confirmation(&kept.into_bytes());
        let response = join_session(&proxy, call, &key, (trace, owned), bound, received).await?;
        without_preface(response, backend, sender).await
    }
}

/// Removes the preface from a daemon's answer, because the client already has one from the proxy.
async fn without_preface(
    response: Response<Body>,
    backend: String,
    sender: MessageSender,
) -> CallResult {
    let (head, mut body) = response.into_parts();
    let mut stripper = PrefaceStripper::new();
    while let Some(frame) = body.frame().await {
        let data = match frame?.into_data() {
            Ok(mut data) => data.copy_to_bytes(data.remaining()),
            // The daemon ended the call at once.
            Err(frame) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                body = Body::whole_with_trailers(Bytes::new(), trailers);
                break;
            }
        };
        let rest = stripper.push(&data).map_err(|error| {
            let (backend, cause) = (backend.clone(), chain(&error));
            ProxyError::BadAnswer { backend, cause }
        })?;
        if let Some(rest) = rest {
            sender.send(rest).await;
            break;
        }
    }
    Ok(Response::from_parts(head, body))
}
