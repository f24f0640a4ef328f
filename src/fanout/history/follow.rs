//! The events of all daemons as they come. A live listener also gets those of daemons that join.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::HeaderMap;
use tokio::time::{MissedTickBehavior, interval};
use tonic::Code;

use super::{Query, learn};
use crate::{
    error::status_code,
    fanout::{
        ask::{Question, reachable},
        merge::{Endings, Gone, Sender, forward},
        reply::{Reply, ReplyError},
    },
    fleet::Backend,
};

/// How often a live listener looks for daemons that have joined.
const JOIN_INTERVAL: Duration = Duration::from_secs(2);

/// One daemon whose events are passed on until its reply ends.
type Stream<'a> = BoxFuture<'a, (Arc<Backend>, Result<Result<(), ReplyError>, Gone>)>;

/// Passes on the events of `replies`. If the query asks for future events, daemons that join are followed too.
pub(super) async fn follow(
    question: &Question,
    query: &Query,
    replies: Vec<Reply>,
    sender: &Sender,
) -> Result<HeaderMap, Gone> {
    let live = !query.early_exit && query.holder.is_none();
    let any_event = AtomicBool::new(false);
    let seen = |backend: &Backend, message: &Bytes| {
        any_event.store(true, Ordering::Relaxed);
        learn(question, backend, message).is_some()
    };
    let mut followed: HashSet<Arc<str>> = HashSet::new();
    let mut streams: FuturesUnordered<Stream<'_>> = FuturesUnordered::new();
    for reply in replies {
        let backend = Arc::clone(&reply.backend);
        followed.insert(backend.shared_name());
        streams.push(async move { (backend, forward(reply, sender, seen).await) }.boxed());
    }
    let mut endings = Endings::default();
    let mut joining = interval(JOIN_INTERVAL);
    joining.set_missed_tick_behavior(MissedTickBehavior::Delay);
    joining.reset();
    loop {
        tokio::select! {
            Some((backend, end)) = streams.next() => {
                let end = end?;
                // A daemon that refused would refuse again.
                if !matches!(end, Ok(()) | Err(ReplyError::Refused { .. })) {
                    followed.remove(backend.name());
                }
                endings.note(question, &backend, end);
            }
            _ = joining.tick(), if live => {
                let there = reachable(&question.proxy);
                followed.retain(|name| there.iter().any(|backend| backend.name() == &**name));
                for backend in there {
                    if followed.insert(backend.shared_name()) {
                        let joined = join(question, Arc::clone(&backend), sender, seen);
                        streams.push(joined.map(|end| (backend, end)).boxed());
                    }
                }
            }
            () = sender.closed() => return Err(Gone),
            else => {}
        }
        endings.answered |= any_event.load(Ordering::Relaxed);
        if is_over(&endings, query, live, streams.is_empty()) {
            return Ok(endings.any());
        }
    }
}

/// Whether the answer has ended. `live` if daemons that join are followed, `idle` if no daemon is followed now.
fn is_over(endings: &Endings, query: &Query, live: bool, idle: bool) -> bool {
    let refusal = endings.refusal.as_ref().filter(|_| !endings.answered);
    let over = idle && (!live || refusal.is_some());
    let final_word = query.build.is_some() && refusal.is_some_and(is_known);
    over || final_word || endings.out_of_memory.is_some()
}

/// Asks a daemon that has joined. The others are followed meanwhile.
async fn join(
    question: &Question,
    backend: Arc<Backend>,
    sender: &Sender,
    seen: impl FnMut(&Backend, &Bytes) -> bool,
) -> Result<Result<(), ReplyError>, Gone> {
    match question.ask(backend).await {
        Ok(reply) => forward(reply, sender, seen).await,
        Err(error) => Ok(Err(error)),
    }
}

/// Whether the refusal shows that the daemon knows the requested build, so that no other daemon needs to be asked.
fn is_known(refusal: &HeaderMap) -> bool {
    status_code(refusal) != Some(Code::Unimplemented)
}
