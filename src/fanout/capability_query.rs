//! The questions that a client asks before it sends a build, answered even if no daemon is there. A fleet that has
//! scaled to zero grows again only if its clients get as far as sending their builds.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{Response, request::Parts};
use tokio::time::timeout;

use super::first::ask_in_turn;
use crate::{
    call::{CallError, CallResult},
    client::Client,
    error::ProxyError,
    proxy::Proxy,
    relay::Body,
    wire::PREFIX_LEN,
};

/// How long Info waits for a daemon. `buildctl --wait` gives up after 5 s in all, and asks again if it gets
/// `Unavailable` before that.
const INFO_MAX_WAIT: Duration = Duration::from_secs(4);

/// One of the two questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CapabilityQuery {
    Info,
    Workers,
}

impl CapabilityQuery {
    /// The question that a call with this `message` asks. `None` if the call asks for something else, because answers
    /// to filters are not remembered.
    pub(super) fn of(parts: &Parts, message: &Bytes) -> Option<Self> {
        if message.len() != PREFIX_LEN {
            return None;
        }
        match parts.uri.path() {
            "/moby.buildkit.v1.Control/Info" => Some(Self::Info),
            "/moby.buildkit.v1.Control/ListWorkers" => Some(Self::Workers),
            _ => None,
        }
    }

    /// A daemon's answer. If no daemon is ready, the remembered answer, or else that of the next daemon to become
    /// ready. A daemon that seems ready may be gone.
    pub(super) async fn answer(
        self,
        proxy: &Proxy,
        client: &Client,
        parts: &Parts,
        message: &Bytes,
    ) -> CallResult {
        if !proxy.fleet.is_ready()
            && let Some(answer) = self.remembered(proxy)
        {
            return Ok(answer);
        }
        let error = match ask_in_turn(proxy, parts, message).await {
            Err(CallError::Own(error @ ProxyError::NoBackend(_))) => error,
            answer => return answer,
        };
        if let Some(answer) = self.remembered(proxy) {
            return Ok(answer);
        }
        let ready = pin!(timeout(self.max_wait(proxy), proxy.fleet.ready()));
        match proxy.parking.during(client, ready).await? {
            Ok(()) => ask_in_turn(proxy, parts, message).await,
            Err(_elapsed) => Err(error.into()),
        }
    }

    /// How long the client waits for a daemon at most.
    fn max_wait(self, proxy: &Proxy) -> Duration {
        let max_wait = proxy.placement.queue().max_wait;
        match self {
            Self::Info => max_wait.min(INFO_MAX_WAIT),
            Self::Workers => max_wait,
        }
    }

    fn remembered(self, proxy: &Proxy) -> Option<Response<Body>> {
        let answers = proxy.capabilities.oldest()?;
        let message = match self {
            Self::Info => answers.info,
            Self::Workers => answers.workers,
        };
        Some(Body::answer(message))
    }
}
