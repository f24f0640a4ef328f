//! Content reads: they are tied to a build only by a digest, so the daemon that has the content is found first.

mod index;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use super::{
    ask::{Question, nobody, search},
    merge,
};
use crate::{
    access::Reach,
    call::{Call, CallResult},
    client::Client,
    error::ProxyError,
    ids::{BindingKey, Id},
    proxy::Proxy,
    upstream::Link,
    wire::content::{InfoRequest, content_client::ContentClient},
};

/// Relays Info and Read to a daemon that has the digest. If no daemon has it, any daemon gets the call, for its error.
///
/// # Errors
/// The proxy's own error, or the daemon's reset.
pub async fn by_digest(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (mut message, rest) = proxy.read_message(&parts, &client, body).await?;
    let link = match message.first_id(client.identity.as_ref()).await {
        Some(id) => holder(proxy, &client, &parts.headers, &id).await?,
        None => None,
    };
    match link {
        Some(link) => proxy.relay_call(&link, parts, message.into_bytes(), rest).await,
        None => proxy.relay_to_any(&client, parts, message.into_bytes(), rest).await,
    }
}

/// Merges the streams of List and ListStatuses of all daemons, in the order in which messages come.
///
/// # Errors
/// The proxy's own error. A daemon that fails is left out.
pub async fn list(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, _rest) = proxy.read_message(&parts, &client, body).await?;
    let question = Question::new(proxy, client, parts, message.into_bytes());
    let replies = question.ask_all().await;
    let Some(headers) = replies.first().map(|reply| reply.headers.clone()) else {
        return Err(nobody(proxy).into());
    };
    Ok(merge::respond(proxy, headers, |sender| async move {
        let endings = merge::as_they_come(&question, replies, &sender, |_, _| true).await?;
        Ok(endings.any())
    }))
}

/// Remembers that the blob `id` belongs to its owner, and which backend has it. An image index is remembered as one, so
/// that the manifests that it names can be found when the owner asks for one of them.
pub(super) fn remember(proxy: &Proxy, backend: Arc<str>, id: Id, is_index: bool) {
    if is_index {
        proxy.directory.remember_index(id.clone(), Arc::clone(&backend));
    }
    proxy.directory.remember(BindingKey::Digest(id), backend);
}

/// The link to a daemon that has the blob. The daemon is found once and remembered, because a blob is read in ranges.
///
/// # Errors
/// A client with an identity asks for a blob that is named neither by a record that it has seen nor by an image index of
/// such a record.
async fn holder(
    proxy: &Proxy,
    client: &Client,
    headers: &HeaderMap,
    digest: &Id,
) -> Result<Option<Link>, ProxyError> {
    let key = BindingKey::Digest(digest.clone());
    let known = || proxy.known_link(&key, client, headers).ok().flatten();
    if let Some((link, _byte_counts)) = known() {
        return Ok(Some(link));
    }
    if client.identity.is_none() || proxy.grant(client).content() == Reach::All {
        let has = |_backend, link| has_blob(link, digest);
        return Ok(search(proxy, client, key.clone(), has).await);
    }
    index::read_all(proxy, client).await;
    let (link, _byte_counts) =
        known().ok_or_else(|| ProxyError::UnknownContent(digest.to_string()))?;
    Ok(Some(link))
}

async fn has_blob(link: Link, digest: &Id) -> bool {
    let request = InfoRequest { digest: Bytes::copy_from_slice(digest.as_bytes()) };
    ContentClient::new(link).info(request).await.is_ok()
}
