//! Content reads: a digest is their only tie, so the daemon that has it is asked for first.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, Response};
use tokio::sync::{mpsc, oneshot};

use super::{ANSWER_TIMEOUT, Answer, ask_all, history::forward, missing, nobody, reachable};
use crate::{
    call::{Call, CallResult},
    client::Client,
    error::ok_trailers,
    ids::{Id, Key},
    proxy::Proxy,
    relay::Body,
    upstream::Link,
    wire::content::{InfoRequest, content_client::ContentClient},
};

/// Info and Read: to a daemon that has the digest; to any if none has, for its error.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn by_digest(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, rest) = proxy.read_message(body).await?;
    let link = match message.first_id().await {
        Some(id) => holder(proxy, &client, &parts.headers, &id).await,
        None => None,
    };
    match link {
        Some(link) => proxy.relay_call(&link, parts, message.into_bytes(), rest).await,
        None => proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await,
    }
}

/// List and ListStatuses: the streams of all daemons, one after the other as they come.
///
/// # Errors
/// The proxy's own error; a daemon's reset is a missing part.
pub async fn list(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, _rest) = proxy.read_message(body).await?;
    let message = message.into_bytes();
    let answers = ask_all(proxy, &client, &parts, &message).await;
    let Some(headers) = answers.first().map(|answer| answer.response.headers().clone()) else {
        return Err(nobody(proxy).into());
    };
    let (sender, receiver) = mpsc::channel(8);
    let (end, ended) = oneshot::channel();
    proxy.spawn(async move {
        let streams = answers.into_iter().map(|Answer { backend, response }| {
            let (sender, parts) = (sender.clone(), &parts);
            async move {
                if let Err(error) = forward(response, &sender, |_message| {}).await {
                    missing(&backend, parts, &error);
                }
            }
        });
        futures_util::future::join_all(streams).await;
        drop(sender);
        // The client may have gone.
        let _ = end.send(ok_trailers());
    });
    let mut response = Response::new(Body::merged(receiver, ended));
    *response.headers_mut() = headers;
    response.headers_mut().remove("grpc-status");
    Ok(response)
}

/// A daemon that has the blob, found once and remembered: reads of one blob come in ranges.
async fn holder(proxy: &Proxy, client: &Client, headers: &HeaderMap, digest: &Id) -> Option<Link> {
    let key = Key::Digest(digest.clone());
    if let Ok(Some((link, _tally))) = proxy.known_link(&key, client, headers) {
        return Some(link);
    }
    let mut asked: FuturesUnordered<_> = reachable(proxy)
        .into_iter()
        .map(|backend| async move {
            let link = proxy.shared.for_question(&backend);
            let has = tokio::time::timeout(ANSWER_TIMEOUT, has_blob(link, digest)).await;
            has.unwrap_or(false).then_some(backend)
        })
        .collect();
    while let Some(found) = asked.next().await {
        if let Some(backend) = found {
            proxy.directory.remember(key, backend.shared_name());
            return Some(proxy.shared.for_call(&backend, client));
        }
    }
    None
}

async fn has_blob(link: Link, digest: &Id) -> bool {
    let request = InfoRequest { digest: Bytes::copy_from_slice(digest.as_bytes()) };
    ContentClient::new(link).info(request).await.is_ok()
}
