//! A Session that waits: the proxy begins the HTTP/2 connection inside it, and the daemon continues it.

use bytes::{Buf as _, Bytes};
use http::Response;
use http_body_util::BodyExt as _;

use super::{
    HOLD_AFTER, answer,
    preface::{self, PrefaceStripper},
};
use crate::{
    builds::{
        parked::{Ended, ParkedBytes},
        refuse,
        session::{SESSION_PARK, bind_session, join_session},
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

/// Holds a Session until it is bound. `kept` is what its client has sent so far.
///
/// # Errors
/// There is no room for the metadata of the call.
pub(in crate::builds) fn session(
    proxy: &Proxy,
    call: Call,
    key: BindingKey,
    (trace, owned): (Option<TraceId>, Option<Owned>),
    mut kept: ParkedBytes,
) -> CallResult {
    kept.charge_metadata(&call.parts.headers)?;
    let held = Held { proxy: proxy.clone(), call, key, trace, owned, kept };
    Ok(answer(proxy, preface::opening(), |sender| held.go_on(sender)))
}

struct Held {
    proxy: Proxy,
    call: Call,
    key: BindingKey,
    trace: Option<TraceId>,
    owned: Option<Owned>,
    kept: ParkedBytes,
}

impl Held {
    async fn go_on(self, sender: MessageSender) -> CallResult {
        let Self { proxy, mut call, key, trace, owned, mut kept } = self;
        let bound = tokio::select! {
            biased;
            bound = bind_session(&proxy, &key, trace, &call.client, SESSION_PARK - HOLD_AFTER) => bound,
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
