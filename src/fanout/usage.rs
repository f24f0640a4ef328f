//! DiskUsage: the records of all daemons in one response.

mod clip;

use bytes::Bytes;
use futures_util::future::join_all;

use self::clip::fitting;
use super::{
    ask::{Question, nobody},
    merge::{self, Endings, send},
    reply::{Reply, ReplyError},
};
use crate::{
    call::{Call, CallResult},
    error::{ProxyError, ok_trailers, trailers_only},
    proxy::Proxy,
    wire::{self, MAX_MESSAGE_LEN, Payload},
};

/// How many bytes are handed to the client at a time. The rest stays where it is counted.
const PIECE_LEN: usize = 256 << 10;

/// Asks every backend and concatenates the replies. A message of repeated fields alone is the concatenation of its
/// parts (protobuf encoding, "Merge"). If the result is too long for one message, the longest descriptions are cut.
///
/// # Errors
/// The proxy's own error. A daemon that fails is left out.
pub async fn disk_usage(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, _rest) = proxy.read_message(&parts, &client, body).await?;
    let question = Question::new(proxy, client, parts, message.into_bytes());
    let read = question.ask_all().await.into_iter().map(|mut reply| async {
        let usage = read(&mut reply).await;
        (reply, usage)
    });
    let mut endings = Endings::default();
    // The replies hold the memory of what they sent, so they stay until the client has it.
    let mut replies = Vec::new();
    let mut usages = Vec::new();
    for (reply, usage) in join_all(read).await {
        match usage {
            Ok(usage) => {
                endings.answered = true;
                usages.extend(usage);
                replies.push(reply);
            }
            Err(error) => endings.note(&question, &reply.backend, Err(error)),
        }
    }
    let Some(headers) = replies.first().map(|reply| reply.headers.clone()) else {
        // All daemons refused, for example because they do not understand a filter. The client gets a daemon's own
        // error.
        return match endings.refusal.is_some() || endings.out_of_memory.is_some() {
            true => Ok(trailers_only(endings.any())),
            false => Err(nobody(proxy).into()),
        };
    };
    if endings.out_of_memory.is_some() {
        return Ok(trailers_only(endings.any()));
    }
    let usage = fitting(&usages, MAX_MESSAGE_LEN).ok_or(ProxyError::Limit(
        "the fleet's disk usage is larger than one gRPC message may be; use a filter",
    ))?;
    drop(usages);
    let mut left = wire::frame(&usage);
    Ok(merge::respond(proxy, headers, |sender| async move {
        while !left.is_empty() {
            let piece = left.split_to(left.len().min(PIECE_LEN));
            if let Err(error) = send(&sender, piece, replies.iter_mut()).await? {
                return Ok(error.trailers(&replies[0].backend));
            }
        }
        Ok(ok_trailers())
    }))
}

/// The payloads that a daemon sends. A normal reply has one.
async fn read(reply: &mut Reply) -> Result<Vec<Bytes>, ReplyError> {
    let mut payloads = Vec::new();
    while let Some(message) = reply.next().await? {
        payloads.push(match wire::payload(&message)? {
            Payload::Plain(plain) => plain,
            Payload::Gzip(packed) => wire::unpack(&packed)?.into(),
        });
    }
    Ok(payloads)
}
