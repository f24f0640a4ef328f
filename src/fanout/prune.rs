//! Prune: every daemon prunes, the records come as they are freed.

use http::{HeaderMap, Response};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, ask_all, history::forward, missing, nobody};
use crate::{
    call::{Call, CallResult},
    error::ok_trailers,
    proxy::Proxy,
    relay::Body,
};

/// Asks every backend to prune; ends when all have ended, with the first failure if there was one.
///
/// Space limits of the request apply to each daemon, as each has its own disk.
///
/// # Errors
/// The proxy's own error; a daemon's reset ends the merged stream with an error.
pub async fn prune(proxy: &Proxy, call: Call) -> CallResult {
    let Call { parts, body, client, .. } = call;
    let (message, _rest) = proxy.read_message(body).await?;
    let message = message.into_bytes();
    let answers = ask_all(proxy, &client, &parts, &message).await;
    let Some(headers) = answers.first().map(|answer| answer.response.headers().clone()) else {
        return Err(nobody(proxy).into());
    };
    let (sender, receiver) = mpsc::channel(8);
    let (end, ended) = oneshot::channel();
    let tasks: Vec<_> = answers
        .into_iter()
        .map(|Answer { backend, response }| {
            let (sender, parts) = (sender.clone(), parts.clone());
            proxy.spawn(async move {
                forward(response, &sender, |_message| {}).await.map_err(|error| {
                    missing(&backend, &parts, &error);
                    error.trailers(&backend)
                })
            })
        })
        .collect();
    proxy.spawn(async move {
        let mut trailers: HeaderMap = ok_trailers();
        for task in tasks {
            if let Ok(Err(failure)) = task.await {
                trailers = failure;
            }
        }
        drop(sender);
        // The client may have gone.
        let _ = end.send(trailers);
    });
    let mut response = Response::new(Body::merged(receiver, ended));
    *response.headers_mut() = headers;
    response.headers_mut().remove("grpc-status");
    Ok(response)
}
