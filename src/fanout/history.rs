//! Build history: one list over all daemons, and the calls for each record to the daemon that has it.

mod follow;

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::{
    ask::{Question, nobody, search},
    content,
    merge::{self, Gone},
    reply::Reply,
};
use crate::{
    call::{Call, CallResult},
    client::Client,
    error::{ProxyError, ok_response},
    fleet::{Backend, Version},
    identity::Identity,
    ids::{BindingKey, Id},
    proxy::Proxy,
    relay::Body,
    upstream::Link,
    wire::{
        self, MAX_MESSAGE_LEN, Payload,
        control::{
            BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest,
            control_client::ControlClient,
        },
        fields::{Fields, Malformed, Value},
    },
};

/// The header in which a daemon tells its time, in answers that contain times.
const TIMESTAMP: HeaderName = HeaderName::from_static("buildkit-current-timestamp");

/// Merges the streams of ListenBuildHistory.
///
/// # Errors
/// The proxy's own error, or the reset of the only daemon that was asked.
pub async fn listen(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, rest) = proxy.read_message(&parts, &client, body).await?;
    let owner = client.identity.clone();
    let query = message.read(move |request| Query::read(request, owner.as_ref())).await;
    let Ok(mut query) = query else {
        // The request cannot be read. A daemon reports that error best.
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    };
    let mut message = message.into_bytes();
    if let Some(id) = &query.build {
        let Some(id) = proxy.visible(id, &client) else {
            // A daemon takes every request for a record as a reader of it, so no daemon is asked.
            return Ok(nothing());
        };
        if let Ok(Some(link)) = proxy.known_record(&id, &client, &parts.headers) {
            if client.identity.is_none() {
                return proxy.relay_call(&link, parts, message, rest).await;
            }
            // The proxy reads the record on the way. The blobs that it names belong to the client from then on.
            query.holder = Some(Arc::clone(link.backend()));
        }
    }
    if query.limit > 0 && proxy.leaves_out(&client) {
        // The daemon must not count records that the client may not see.
        message = without_limit(message);
    }
    let mut question = Question::new(proxy, client, parts, message);
    if !query.early_exit {
        question = question.without_idle_timeout();
    }
    let replies = match &query.holder {
        Some(holder) => question.ask_each(vec![Arc::clone(holder)]).await,
        None => question.ask_all().await,
    };
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

/// The answer to a request for a record that the client may not see.
fn nothing() -> http::Response<Body> {
    let mut response = ok_response();
    let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    // A client waits for this header, which a daemon sends first.
    response.headers_mut().extend(HeaderValue::try_from(now).ok().map(|now| (TIMESTAMP, now)));
    response
}

/// A framed BuildHistoryRequest, with the largest possible limit appended: the last value of a field counts. Without a
/// limit, a daemon would send its records in another order.
fn without_limit(framed: Bytes) -> Bytes {
    const LARGEST: [u8; 6] = [5 << 3, 0xff, 0xff, 0xff, 0xff, 0x07];
    let Ok(Payload::Plain(request)) = wire::payload(&framed) else { return framed };
    wire::frame(&[&request[..], &LARGEST].concat())
}

/// How the answers to a BuildHistoryRequest are merged.
#[derive(Debug, Default)]
struct Query {
    build: Option<Id>,
    early_exit: bool,
    /// How many records are wanted; 0 is all.
    limit: usize,
    /// The daemon that has the requested record, if it is known.
    holder: Option<Arc<Backend>>,
}

impl Query {
    fn read(request: &[u8], owner: Option<&Arc<Identity>>) -> Result<Self, Malformed> {
        let mut query = Self::default();
        for field in Fields::new(request) {
            match field? {
                (2, Value::Bytes(id)) => query.build = Id::new(id, owner),
                (3, Value::Number(early_exit)) => query.early_exit = early_exit != 0,
                // The field is an int32, and a negative value is no limit.
                (5, Value::Number(limit)) => {
                    query.limit = i32::try_from(limit).map_or(0, |limit| limit as usize);
                }
                _ => {}
            }
        }
        Ok(query)
    }
}

/// Relays UpdateBuildHistory to the daemon that has the record. If no daemon has it, any daemon gets the call, for its
/// error.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn update(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, rest) = proxy.read_message(&parts, &client, body).await?;
    let Some(id) = message.first_id(client.identity.as_ref()).await else {
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    };
    let Some(id) = proxy.visible(&id, &client) else {
        return Err(ProxyError::UnknownBuild(id.to_string()).into());
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

/// Asks all daemons for the record of `id`, and remembers which one has it.
pub async fn locate(proxy: &Proxy, client: &Client, id: &Id) -> Option<Link> {
    let key = BindingKey::Build(id.clone());
    search(proxy, client, key, |backend, link| has_record(backend, link, id)).await
}

/// Whether `backend` has the record of `id`.
///
/// The question uses a filter. A daemon counts a request for one ref as a reader of that record, and when the record is
/// to be deleted, the daemon only hides it until its next start (BuildKit solver/llbsolver/history).
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
    // A daemon sends running builds whatever the filter, and everything if it does not know filters.
    while let Ok(Some(event)) = events.message().await {
        if event.record.is_some_and(|record| record.r#ref[..] == *id.as_bytes()) {
            return true;
        }
    }
    false
}

/// A filter for the record of `id`, if the daemon knows filters and the id needs no quoting.
fn filter(backend: &Backend, id: &Id) -> Option<Bytes> {
    let known = !backend.version()?.is_before(Version::HISTORY_LIMITS);
    let plain = id.as_bytes().iter().all(u8::is_ascii_alphanumeric);
    (known && plain).then(|| [b"ref==", id.as_bytes()].concat().into())
}

/// Whether all daemons that reply know a limit. A daemon that does not sends everything, in another order.
fn know_limits(replies: &[Reply]) -> bool {
    replies.iter().all(|reply| {
        let version = reply.backend.version();
        version.is_none_or(|version| !version.is_before(Version::HISTORY_LIMITS))
    })
}

/// All running builds of all daemons, then the newest `limit` ended ones. The reply of each daemon has this order
/// (BuildKit history/filter.go).
async fn newest(
    question: &Question,
    replies: Vec<Reply>,
    sender: &merge::Sender,
    mut limit: usize,
) -> Result<http::HeaderMap, Gone> {
    let rank = |backend: &Backend, message: &Bytes| {
        let event = learn(question, backend, message)?;
        let runs = event.r#type() == BuildHistoryEventType::Started;
        let created = event.record.and_then(|record| record.created_at);
        Some((runs, created.map(|at| (at.seconds, at.nanos)).unwrap_or_default()))
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

/// Remembers which backend has the build of an event and its blobs. Returns `None` if the client must not see the
/// event.
fn learn(question: &Question, backend: &Backend, message: &Bytes) -> Option<BuildHistoryEvent> {
    let (proxy, owner) = (&question.proxy, question.client.identity.as_ref());
    let event: BuildHistoryEvent = wire::decode(message).unwrap_or_default();
    let id = event.record.as_ref().and_then(|record| Id::new(&record.r#ref, owner));
    // A record without a ref belongs to nobody.
    let Some(id) = id else { return owner.is_none().then_some(event) };
    let id = proxy.visible(&id, &question.client)?;
    match event.r#type() {
        BuildHistoryEventType::Deleted => proxy.directory.forget(&BindingKey::Build(id)),
        _ => proxy.directory.remember(BindingKey::Build(id), backend.shared_name()),
    }
    if owner.is_some()
        && let Ok(Payload::Plain(event)) = wire::payload(message)
    {
        // A message that cannot be read names no blobs.
        let _ = wire::history::blobs(&event, |blob| {
            if let Some(id) = Id::new(blob.digest, owner) {
                content::remember(proxy, backend.shared_name(), id, blob.is_index);
            }
        });
    }
    Some(event)
}
