//! Build history: one list over all daemons, and each record's calls to the daemon that has it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, Response, request::Parts};
use http_body_util::BodyExt as _;
use tokio::sync::{mpsc, oneshot};
use tonic::Code;

use super::{
    ANSWER_TIMEOUT, Answer, PartError, ask, ask_all, messages, missing, nobody, reachable,
};
use crate::{
    call::{Call, CallResult},
    client::Client,
    error::{ok_trailers, status_code},
    fleet::Backend,
    ids::{Id, Key},
    proxy::Proxy,
    relay::{Body, Received},
    upstream::Link,
    wire::{
        self, MAX_MESSAGE_LEN, Messages,
        control::{
            BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRequest,
            control_client::ControlClient,
        },
        fields::{Fields, Malformed, Value},
    },
};

/// How often a live listener looks for daemons that have joined.
const JOIN_INTERVAL: Duration = Duration::from_secs(2);

/// ListenBuildHistory.
///
/// # Errors
/// The proxy's own error, or the reset of the daemon that alone was asked.
pub async fn listen(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, rest) = proxy.read_message(body).await?;
    let Ok(query) = message.read(Query::read).await else {
        // A daemon says best what is wrong with it.
        return proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await;
    };
    let message = message.into_bytes();
    if let Some(id) = query.build
        && let Ok(Some(link)) = proxy.known_record(&id, &client, &parts.headers)
    {
        return proxy.relay_call(&link, parts, message, rest).await;
    }
    let answers = ask_all(proxy, &client, &parts, &message).await;
    let Some(headers) = answers.first().map(|answer| answer.response.headers().clone()) else {
        return Err(nobody(proxy).into());
    };
    let body = if query.early_exit && query.limit > 0 {
        newest(proxy, &parts, answers, query.limit).await
    } else {
        follow(proxy, client, parts, message, answers, !query.early_exit)
    };
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    // A daemon with nothing to tell answers with headers that are trailers.
    response.headers_mut().remove("grpc-status");
    response.headers_mut().remove("grpc-message");
    Ok(response)
}

/// What a BuildHistoryRequest says of how its answers are merged.
#[derive(Default)]
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
    let (message, rest) = proxy.read_message(body).await?;
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
    let mut asked: FuturesUnordered<_> = reachable(proxy)
        .into_iter()
        .map(|backend| async move {
            let link = proxy.shared.for_question(&backend);
            let has = tokio::time::timeout(ANSWER_TIMEOUT, has_record(link, id)).await;
            has.unwrap_or(false).then_some(backend)
        })
        .collect();
    while let Some(found) = asked.next().await {
        if let Some(backend) = found {
            proxy.directory.remember(Key::Build(id.clone()), backend.shared_name());
            return Some(proxy.shared.for_call(&backend, client));
        }
    }
    None
}

async fn has_record(link: Link, id: &Id) -> bool {
    let request = BuildHistoryRequest {
        r#ref: Bytes::copy_from_slice(id.as_bytes()),
        early_exit: true,
        ..Default::default()
    };
    let Ok(response) = ControlClient::new(link).listen_build_history(request).await else {
        return false;
    };
    matches!(response.into_inner().message().await, Ok(Some(_)))
}

/// The newest `limit` ended proxy of all daemons, after all that run (BuildKit history/filter.go).
async fn newest(proxy: &Proxy, parts: &Parts, answers: Vec<Answer>, limit: usize) -> Body {
    let mut running = Vec::new();
    let mut ended = Vec::new();
    let parts_read = answers.into_iter().map(|Answer { backend, response }| async move {
        let result = messages(response).await;
        (backend, result)
    });
    for (backend, result) in futures_util::future::join_all(parts_read).await {
        match result {
            Ok(messages) => {
                for message in messages {
                    let event = learn(proxy, &backend, &message);
                    let started = event.r#type() == BuildHistoryEventType::Started;
                    let created = event.record.and_then(|record| record.created_at);
                    let created = created.map(|at| (at.seconds, at.nanos)).unwrap_or_default();
                    if started { &mut running } else { &mut ended }.push((created, message));
                }
            }
            Err(error) => missing(&backend, parts, &error),
        }
    }
    ended.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    ended.truncate(limit);
    let messages = running.into_iter().chain(ended).map(|(_, message)| message);
    Body::whole_with_trailers(messages.collect::<Vec<_>>().concat().into(), ok_trailers())
}

/// Events of all daemons as they come; of those that join later too, if `live`.
fn follow(
    proxy: &Proxy,
    client: Client,
    parts: Parts,
    message: Bytes,
    answers: Vec<Answer>,
    live: bool,
) -> Body {
    let (sender, receiver) = mpsc::channel(8);
    let (end, ended) = oneshot::channel();
    let context = proxy.clone();
    proxy.spawn(async move {
        let mut followed: HashSet<Arc<str>> = HashSet::new();
        let mut streams = Vec::new();
        for answer in answers {
            followed.insert(answer.backend.shared_name());
            streams.push(follow_one(&context, answer, &parts, &sender));
        }
        if live {
            follow_joining(&context, &client, &parts, &message, &sender, &mut followed).await;
        }
        futures_util::future::join_all(streams).await;
        drop(sender);
        // The client may have gone.
        let _ = end.send(ok_trailers());
    });
    Body::merged(receiver, ended)
}

/// Until the client goes: looks for new daemons and follows them too.
async fn follow_joining(
    proxy: &Proxy,
    client: &Client,
    parts: &Parts,
    message: &Bytes,
    sender: &mpsc::Sender<Bytes>,
    followed: &mut HashSet<Arc<str>>,
) {
    while tokio::time::timeout(JOIN_INTERVAL, sender.closed()).await.is_err() {
        let backends = reachable(proxy);
        followed.retain(|name| backends.iter().any(|backend| backend.name() == &**name));
        for backend in backends {
            if !followed.contains(backend.name()) {
                let link = proxy.shared.for_call(&backend, client);
                if let Ok(response) = ask(link, parts, message).await {
                    followed.insert(backend.shared_name());
                    follow_one(proxy, Answer { backend, response }, parts, sender);
                }
            }
        }
    }
}

fn follow_one(
    proxy: &Proxy,
    Answer { backend, response }: Answer,
    parts: &Parts,
    sender: &mpsc::Sender<Bytes>,
) -> tokio::task::JoinHandle<()> {
    let (context, parts, sender) = (proxy.clone(), parts.clone(), sender.clone());
    proxy.spawn(async move {
        let learn = |message: &Bytes| drop(learn(&context, &backend, message));
        if let Err(error) = forward(response, &sender, learn).await {
            missing(&backend, &parts, &error);
        }
    })
}

/// Sends each message of `response` on, whole, until its end or until the client goes.
pub(super) async fn forward(
    response: Response<Received>,
    sender: &mpsc::Sender<Bytes>,
    seen: impl Fn(&Bytes),
) -> Result<(), PartError> {
    let (parts, mut body) = response.into_parts();
    let mut status: HeaderMap = parts.headers;
    let mut cutter = Messages::new(MAX_MESSAGE_LEN);
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = sender.closed() => return Ok(()),
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| PartError::Unreachable(crate::error::chain(&error)))?;
        match frame.into_data() {
            Ok(data) => {
                cutter.push(&data);
                while let Some(message) = cutter.cut()? {
                    seen(&message);
                    if sender.send(message).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Err(frame) => status = frame.into_trailers().unwrap_or_default(),
        }
    }
    match status_code(&status) {
        Some(Code::Ok) => Ok(()),
        code => Err(PartError::Status { code: code.unwrap_or(Code::Unknown), trailers: status }),
    }
}

/// Remembers which backend an event's build belongs to.
fn learn(proxy: &Proxy, backend: &Backend, message: &Bytes) -> BuildHistoryEvent {
    let event: BuildHistoryEvent = wire::decode(message).unwrap_or_default();
    if let Some(id) = event.record.as_ref().and_then(|record| Id::new(&record.r#ref)) {
        match event.r#type() {
            BuildHistoryEventType::Deleted => proxy.directory.forget(&Key::Build(id)),
            _ => proxy.directory.remember(Key::Build(id), backend.shared_name()),
        }
    }
    event
}
