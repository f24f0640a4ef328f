//! Several builds with the same ref, and which of them a call belongs to.
//!
//! A buildx builder with several nodes gives one ref to the Solves of all nodes. If the nodes lead to one pool, each
//! build still has a session and a connection of its own. The Solve names its session, so two builds can be told apart.
//! A Session stream is found by its own id; Status and LLBBridge calls know only the ref and are found by their
//! connection. The first build is known by its ref, like any build; the others are known by ref and connection. Each
//! goes to a backend of its own, because a daemon takes a ref only once. Behind an HTTP/2 hop that mixes connections
//! nothing tells the builds apart, and both are refused.

use tokio::sync::watch;

use super::{Directory, Inner, claim::Placing};
use crate::{
    error::ProxyError,
    ids::{BindingKey, Id, SessionId, TraceId},
};

/// Where a call came from.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The number of its connection.
    pub connection: u64,
    /// Its trace, if it has one.
    pub trace: Option<TraceId>,
}

/// Which build a call with a given ref belongs to.
#[derive(Debug)]
pub(super) enum Which {
    /// The build that is known by its ref alone.
    First,
    /// A later build with the same ref.
    Namesake(BindingKey),
    /// The first build, unless a Solve with the same ref is about to come on the call's own connection: the calls of
    /// one build come in any order.
    Early,
}

/// The error for builds with the same ref whose connections do not show which call belongs to which build.
fn mixed(build: &Id) -> ProxyError {
    let cause = "calls on this connection cannot be told from those of the other build";
    ProxyError::RefTaken { build: build.to_string(), cause }
}

impl Directory {
    /// Tells the calls that wait for a Solve with these ids that it has come and is being placed, for as long as the
    /// guard lives.
    ///
    /// # Errors
    /// A build with the same ref runs, and nothing would tell the calls of the two apart.
    pub fn placing(
        &self,
        session: Option<&SessionId>,
        build: Option<&Id>,
        caller: Caller,
    ) -> Result<Placing, ProxyError> {
        let mut inner = self.inner.lock();
        let mut apart = Vec::new();
        let mut keys: Vec<BindingKey> =
            session.cloned().map(BindingKey::Session).into_iter().collect();
        if let Some(build) = build {
            apart = inner.others(build, keys.first(), caller)?;
            keys.push(if apart.is_empty() {
                BindingKey::Build(build.clone())
            } else {
                inner.live.add_namesake(build, caller.connection)
            });
        }
        let (wait_sender, placed) = watch::channel(None);
        for key in &keys {
            inner.live.arrive(key, caller.connection, &placed);
        }
        Ok(Placing::new(self, keys, apart, placed, wait_sender))
    }
}

impl Inner {
    /// The keys of the builds with this ref that the Solve of `session` does not belong to.
    fn others(
        &mut self,
        build: &Id,
        session: Option<&BindingKey>,
        caller: Caller,
    ) -> Result<Vec<BindingKey>, ProxyError> {
        let key = BindingKey::Build(build.clone());
        let first = self.live.came_on(&key);
        let again = session.is_some_and(|session| self.live.came_on(session).is_some());
        if again || first.is_none_or(|first| first == caller.connection) {
            // The Solve was sent twice. A daemon reports that error best.
            return Ok(Vec::new());
        }
        if self.scattered(&key, caller) {
            // The other calls of this Solve would be taken for calls of the first build, so the first build ends too.
            self.live.mix(build);
            return Err(mixed(build));
        }
        let namesakes = self.live.namesakes.get(build).into_iter().flat_map(|all| &all.on);
        let namesakes = namesakes.filter(|on| **on != caller.connection);
        let namesakes = namesakes.map(|on| BindingKey::Namesake(build.clone(), *on));
        Ok(std::iter::once(key).chain(namesakes).collect())
    }

    /// Which build with the ref `build` a call from `caller` belongs to.
    ///
    /// # Errors
    /// Several builds have the ref, and none came on the caller's connection.
    pub(super) fn which(&mut self, build: &Id, caller: Caller) -> Result<Which, ProxyError> {
        let key = BindingKey::Build(build.clone());
        let first = self.live.came_on(&key);
        if let Some(namesakes) = self.live.namesakes.get(build) {
            return match first {
                _ if namesakes.mixed => Err(mixed(build)),
                _ if namesakes.on.contains(&caller.connection) => {
                    Ok(Which::Namesake(BindingKey::Namesake(build.clone(), caller.connection)))
                }
                Some(first) if first != caller.connection => Err(mixed(build)),
                _ => Ok(Which::First),
            };
        }
        if first == Some(caller.connection) {
            return Ok(Which::First);
        }
        let namesake = BindingKey::Namesake(build.clone(), caller.connection);
        if self.memory.get(&namesake).is_some() {
            return Ok(Which::Namesake(namesake));
        }
        let asked = self.live.keys.get(&key).is_some_and(|live| live.asked_elsewhere);
        let early = first.is_some() && !asked && !self.scattered(&key, caller);
        Ok(if early { Which::Early } else { Which::First })
    }

    /// Whether the calls of this build, or of its client, come on several connections.
    fn scattered(&mut self, build: &BindingKey, caller: Caller) -> bool {
        self.live.keys.get(build).is_some_and(|live| live.scattered)
            || caller.trace.is_some_and(|trace| self.memory.is_scattered(&trace))
    }
}
