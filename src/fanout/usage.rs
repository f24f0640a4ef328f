//! DiskUsage: the records of all daemons in one response.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::join_all;
use http::Response;

use super::{Answer, PartError, ask_all, messages, missing, nobody};
use crate::{
    call::{Call, CallResult},
    error::{ProxyError, ok_trailers, trailers_only},
    proxy::Proxy,
    relay::Body,
    wire::{MAX_MESSAGE_LEN, PREFIX_LEN},
};

/// Asks every backend and concatenates: a message of repeated fields alone is the concatenation of
/// its parts (protobuf encoding, "Merge").
///
/// # Errors
/// The proxy's own error; a daemon's reset is a missing part.
pub async fn disk_usage(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, _rest) = proxy.read_message(body).await?;
    let message = message.into_bytes();
    let answers = ask_all(proxy, &client, &parts, &message).await;
    let read = join_all(answers.into_iter().map(|Answer { backend, response }| async {
        let headers = response.headers().clone();
        (backend, headers, messages(response).await)
    }));
    let mut merged = BytesMut::new();
    let mut headers = None;
    let mut refusal = None;
    for (backend, head, result) in read.await {
        match result {
            Ok(messages) => {
                headers.get_or_insert(head);
                messages.iter().for_each(|message| merged.put_slice(&message[PREFIX_LEN..]));
            }
            Err(error) => {
                missing(&backend, &parts, &error);
                if let PartError::Status { trailers, .. } = error {
                    refusal.get_or_insert((head, trailers));
                }
            }
        }
    }
    match (headers, refusal) {
        (Some(_), _) if merged.len() > MAX_MESSAGE_LEN => Err(ProxyError::Limit(
            "the fleet's disk usage is larger than one gRPC message may be; use a filter",
        )
        .into()),
        (Some(headers), _) => Ok(respond(headers, framed(&merged))),
        // All refused, as a filter that none understands: the client gets a daemon's own words.
        (None, Some((_headers, trailers))) => Ok(trailers_only(trailers)),
        (None, None) => Err(nobody(proxy).into()),
    }
}

fn framed(payload: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_LEN + payload.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    framed.put_slice(payload);
    framed.freeze()
}

fn respond(headers: http::HeaderMap, message: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::whole_with_trailers(message, ok_trailers()));
    *response.headers_mut() = headers;
    response
}
