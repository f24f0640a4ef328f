//! Build history: one list over all daemons, and each record's calls to the daemon that has it.

mod follow;

use std::sync::Arc;

use bytes::Bytes;

use super::{
    ask::{Question, nobody, search},
    merge::{self, Gone},
    reply::Reply,
};
use crate::{
    call::{Call, CallResult},
    client::Client,
    fleet::{Backend, Version},
    ids::{BindingKey, Id},
    proxy::Proxy,
    upstream::Link,
    wire::{
        self, MAX_MESSAGE_LEN,
        control::{
            BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest,
            control_client::ControlClient,
        },
        fields::{Fields, Malformed, Value},
    },
};

/// ListenBuildHistory.
///
/// # Errors
/// The proxy's own error, or the reset of the daemon that alone was asked.
pub async fn listen(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, rest) = proxy.read_message(&parts, &client, body).await?;
    let Ok(query) = message.read(Query::read).await else {
        // A daemon says best what is wrong with it.
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    };
    let message = message.into_bytes();
    if let Some(id) = &query.build
        && let Ok(Some(link)) = proxy.known_record(id, &client, &parts.headers)
    {
        return proxy.relay_call(&link, parts, message, rest).await;
    }
    let mut question = Question::new(proxy, client, parts, message);
    if !query.early_exit {
        question = question.patient();
    }
    let replies = question.ask_all().await;
    let Some(headers) = replies.first().map(|reply| reply.headers.clone()) else {
        return Err(nobody(proxy).into());
    };
    Ok(merge::respond(proxy, headers, |sender| async move {
        if query.early_exit && query.limit > 0 && know_limits(&replies) {
            newest(&question, replies, &sender, query.limit).await
        } else {
            follow::follow(&question, &query, replies, &sender).await
        }
    }))
}

/// What a BuildHistoryRequest says of how its answers are merged.
#[derive(Debug, Default)]
struct Query {
    build: Option<Id>,
    early_exit: bool,
    /// Records that are wanted; none is all.
    limit: usize,
}

impl Query {
    fn read(request: &[u8]) -> Result<Self, Malformed> {
        let mut query = Self::default();
        for field in Fields::new(request) {
            match field? {
                (2, Value::Bytes(id)) => query.build = Id::new(id),
                (3, Value::Number(early_exit)) => query.early_exit = early_exit != 0,
                // An int32: a negative one is no limit.
                (5, Value::Number(limit)) => {
                    query.limit = i32::try_from(limit).map_or(0, |limit| limit as usize);
                }
                _ => {}
            }
        }
        Ok(query)
    }
}

/// UpdateBuildHistory: to the daemon that has the record; to any if none has, for its error.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn update(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, rest) = proxy.read_message(&parts, &client, body).await?;
    let Some(id) = message.first_id().await else {
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    };
    let link = match proxy.known_record(&id, &client, &parts.headers) {
        Ok(Some(link)) => Some(link),
        Ok(None) => locate(proxy, &client, &id).await,
        Err(error) => return Err(error.into()),
    };
    match link {
        Some(link) => proxy.relay_call(&link, parts, message.into_bytes(), rest).await,
        None => proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await,
    }
}

/// Asks all daemons for the record of `id`; remembers who has it.
pub async fn locate(proxy: &Proxy, client: &Client, id: &Id) -> Option<Link> {
    let key = BindingKey::Build(id.clone());
    search(proxy, client, key, |backend, link| has_record(backend, link, id)).await
}

/// Whether `backend` has the record of `id`.
///
/// It is looked for with a filter: a daemon takes whoever asks for one ref for a reader of that record, and
/// from then on hides it until the daemon's next start when it should delete it (BuildKit
/// solver/llbsolver/history).
async fn has_record(backend: Arc<Backend>, link: Link, id: &Id) -> bool {
    let request = BuildHistoryRequest {
        filter: filter(&backend, id).into_iter().collect(),
        early_exit: true,
        ..Default::default()
    };
    let mut client = ControlClient::new(link).max_decoding_message_size(MAX_MESSAGE_LEN);
    let Ok(response) = client.listen_build_history(request).await else {
        return false;
    };
    let mut events = response.into_inner();
    // What runs is told whatever the filter, and so is all by a daemon that knows none.
    while let Ok(Some(event)) = events.message().await {
        if event.record.is_some_and(|record| record.r#ref[..] == *id.as_bytes()) {
            return true;
        }
    }
    false
}

/// A filter for the record of `id`, if its daemon knows filters and the id needs no quoting.
fn filter(backend: &Backend, id: &Id) -> Option<Bytes> {
    let known = !backend.version()?.is_before(Version::HISTORY_LIMITS);
    let plain = id.as_bytes().iter().all(u8::is_ascii_alphanumeric);
    (known && plain).then(|| [b"ref==", id.as_bytes()].concat().into())
}

/// Whether all that reply know a limit; who does not sends everything in an order of its own.
fn know_limits(replies: &[Reply]) -> bool {
    replies.iter().all(|reply| {
        let version = reply.backend.version();
        version.is_none_or(|version| !version.is_before(Version::HISTORY_LIMITS))
    })
}

/// The newest `limit` ended builds of all daemons, after all that run: the order of each daemon's reply
/// (BuildKit history/filter.go).
async fn newest(
    question: &Question,
    replies: Vec<Reply>,
    sender: &merge::Sender,
    mut limit: usize,
) -> Result<http::HeaderMap, Gone> {
    let rank = |backend: &Backend, message: &Bytes| {
        let event = learn(&question.proxy, backend, message);
        let runs = event.r#type() == BuildHistoryEventType::Started;
        let created = event.record.and_then(|record| record.created_at);
        (runs, created.map(|at| (at.seconds, at.nanos)).unwrap_or_default())
    };
    let wanted = |(runs, _created): &(bool, (i64, i32))| {
        if !runs {
            limit = match limit {
                0 => return false,
                left => left - 1,
            };
        }
        true
    };
    Ok(merge::in_order(question, replies, sender, rank, wanted).await?.any())
}

/// Remembers which backend an event's build belongs to.
fn learn(proxy: &Proxy, backend: &Backend, message: &Bytes) -> BuildHistoryEvent {
    let event: BuildHistoryEvent = wire::decode(message).unwrap_or_default();
    if let Some(id) = event.record.as_ref().and_then(|record| Id::new(&record.r#ref)) {
        match event.r#type() {
            BuildHistoryEventType::Deleted => proxy.directory.forget(&BindingKey::Build(id)),
            _ => proxy.directory.remember(BindingKey::Build(id), backend.shared_name()),
        }
    }
    event
}
