//! Merges the replies of several daemons into one answer, no faster than the client reads it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{join_all, select_all},
    stream::FuturesUnordered,
};
use http::{HeaderMap, Response};
use tokio::sync::{mpsc, oneshot};

use super::{
    ask::Question,
    charge::OutOfMemory,
    reply::{Reply, ReplyError},
};
use crate::{
    error::{MARKER, ok_trailers},
    fleet::Backend,
    proxy::Proxy,
    relay::Body,
};

/// The headers that say how a call ended. They must not be in the headers of an answer that continues.
const STATUS_HEADERS: [&str; 3] = ["grpc-status", "grpc-message", "grpc-status-details-bin"];

/// Takes the messages of an answer. One message waits in the channel until the client reads it.
pub(super) type Sender = mpsc::Sender<Bytes>;

/// The client has gone.
#[derive(Debug)]
pub(super) struct Gone;

/// A message, or how the reply ended.
type Next = Result<Option<Bytes>, ReplyError>;

/// An answer with `headers`. `merge` gives its messages and its trailers.
pub(super) fn respond<F>(
    proxy: &Proxy,
    mut headers: HeaderMap,
    merge: impl FnOnce(Sender) -> F,
) -> Response<Body>
where
    F: Future<Output = Result<HeaderMap, Gone>> + Send + 'static,
{
    // A daemon with an empty reply sends its trailers as headers.
    for name in STATUS_HEADERS {
        headers.remove(name);
    }
    headers.remove(MARKER);
    let (sender, receiver) = mpsc::channel(1);
    let (end, ended) = oneshot::channel();
    let merging = merge(sender);
    proxy.spawn(async move {
        if let Ok(trailers) = merging.await {
            // The client may have gone.
            let _ = end.send(trailers);
        }
    });
    let mut response = Response::new(Body::merged(receiver, ended));
    *response.headers_mut() = headers;
    response
}

/// How the replies ended, as far as they have.
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// Whether a reply ended well or contained a message.
    pub(super) answered: bool,
    /// The first refusal of a daemon.
    pub(super) refusal: Option<HeaderMap>,
    /// The first failure, which may be a refusal.
    failure: Option<HeaderMap>,
    /// The first failure that is not a daemon's. The answer cannot continue after it.
    pub(super) out_of_memory: Option<HeaderMap>,
}

impl Endings {
    /// Notes how the reply of `backend` ended.
    pub(super) fn note(
        &mut self,
        question: &Question,
        backend: &Backend,
        end: Result<(), ReplyError>,
    ) {
        let Err(error) = end else {
            self.answered = true;
            return;
        };
        question.left_out(backend, &error);
        let (refused, out_of_memory) = (
            matches!(error, ReplyError::Refused { .. }),
            matches!(error, ReplyError::OutOfMemory(_)),
        );
        let trailers = error.trailers(backend);
        if out_of_memory {
            self.out_of_memory.get_or_insert(trailers);
        } else if refused {
            self.refusal.get_or_insert_with(|| trailers.clone());
            self.failure.get_or_insert(trailers);
        } else {
            self.failure.get_or_insert(trailers);
        }
    }

    /// The trailers of an answer that succeeds if any daemon answered. If none did, a daemon's own refusal is preferred
    /// to other failures.
    pub(super) fn any(self) -> HeaderMap {
        let failure = if self.answered { None } else { self.refusal.or(self.failure) };
        self.out_of_memory.or(failure).unwrap_or_else(ok_trailers)
    }

    /// The trailers of an answer that succeeds only if all daemons answered; `good` if they did.
    pub(super) fn all(self, good: HeaderMap) -> HeaderMap {
        self.out_of_memory.or(self.failure).unwrap_or(good)
    }
}

/// Sends the messages of `reply` until it ends, except those for which `seen` returns false.
pub(super) async fn forward(
    mut reply: Reply,
    sender: &Sender,
    mut seen: impl FnMut(&Backend, &Bytes) -> bool,
) -> Result<Result<(), ReplyError>, Gone> {
    loop {
        let next = tokio::select! {
            next = reply.next() => next,
            () = sender.closed() => return Err(Gone),
        };
        match next {
            Ok(Some(message)) => {
                if !seen(&reply.backend, &message) {
                    continue;
                }
                if let Err(error) = send(sender, message, std::iter::once(&mut reply)).await? {
                    return Ok(Err(error));
                }
            }
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Sends the messages of all replies as they come. No daemon waits for another.
pub(super) async fn as_they_come(
    question: &Question,
    replies: Vec<Reply>,
    sender: &Sender,
    seen: impl Fn(&Backend, &Bytes) -> bool,
) -> Result<Endings, Gone> {
    let seen = &seen;
    let mut streams: FuturesUnordered<_> = replies
        .into_iter()
        .map(|reply| async move {
            let backend = Arc::clone(&reply.backend);
            (backend, forward(reply, sender, seen).await)
        })
        .collect();
    let mut endings = Endings::default();
    while let Some((backend, end)) = streams.next().await {
        endings.note(question, &backend, end?);
        if endings.out_of_memory.is_some() {
            break;
        }
    }
    Ok(endings)
}

/// The next message of one of several replies.
#[derive(Debug)]
struct Head<R> {
    rank: R,
    message: Bytes,
    reply: Reply,
}

/// Sends the messages of all replies, the highest rank first, until one is not `wanted`. Messages without a rank are
/// left out. Each reply is already in this order, so one message of each reply in memory is enough.
pub(super) async fn in_order<R: Ord>(
    question: &Question,
    replies: Vec<Reply>,
    sender: &Sender,
    rank: impl Fn(&Backend, &Bytes) -> Option<R>,
    mut wanted: impl FnMut(&R) -> bool,
) -> Result<Endings, Gone> {
    let mut endings = Endings::default();
    let mut heads: Vec<Head<R>> = Vec::new();
    let mut waited_for = replies;
    loop {
        let mut passed_over = Vec::new();
        for (reply, next) in next_of(waited_for, sender).await? {
            match next {
                Ok(Some(message)) => {
                    endings.answered = true;
                    match rank(&reply.backend, &message) {
                        Some(rank) => heads.push(Head { rank, message, reply }),
                        None => passed_over.push(reply),
                    }
                }
                Ok(None) => endings.answered = true,
                Err(error) => endings.note(question, &reply.backend, Err(error)),
            }
        }
        if !passed_over.is_empty() {
            waited_for = passed_over;
            continue;
        }
        let ranks = heads.iter().enumerate();
        let Some((highest, _)) = ranks.max_by(|(_, a), (_, b)| a.rank.cmp(&b.rank)) else {
            return Ok(endings);
        };
        let Head { rank, message, mut reply } = heads.swap_remove(highest);
        if !wanted(&rank) || endings.out_of_memory.is_some() {
            return Ok(endings);
        }
        let holders = heads.iter_mut().map(|head| &mut head.reply);
        let sent = send(sender, message, holders.chain(std::iter::once(&mut reply))).await?;
        if let Err(error) = sent {
            endings.note(question, &reply.backend, Err(error));
            return Ok(endings);
        }
        waited_for = vec![reply];
    }
}

/// The next message of each of `replies`, once all have come.
async fn next_of(replies: Vec<Reply>, sender: &Sender) -> Result<Vec<(Reply, Next)>, Gone> {
    let next = join_all(replies.into_iter().map(|mut reply| async move {
        let next = reply.next().await;
        (reply, next)
    }));
    tokio::select! {
        next = next => Ok(next),
        () = sender.closed() => Err(Gone),
    }
}

/// Hands on a message as soon as the client has read the one before. It fails if a client that holds less gets the
/// memory of one of `holders` meanwhile.
pub(super) async fn send(
    sender: &Sender,
    message: Bytes,
    holders: impl Iterator<Item = &mut Reply>,
) -> Result<Result<(), ReplyError>, Gone> {
    if let Ok(permit) = sender.try_reserve() {
        permit.send(message);
        return Ok(Ok(()));
    }
    let evicted = select_all(holders.map(|reply| Box::pin(reply.evicted())));
    tokio::select! {
        sent = sender.send(message) => sent.map(Ok).map_err(|_closed| Gone),
        _ = evicted => Ok(Err(OutOfMemory.into())),
    }
}
