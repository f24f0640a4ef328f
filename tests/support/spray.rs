//! An HTTP/2 hop that sends each call of a client over another connection to the proxy.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

use super::fake_daemon::send;

/// The metadata of all calls so far.
pub(crate) type Noted = Arc<Mutex<Vec<HeaderMap>>>;

/// Starts the hop in front of `proxy` (`HOST:PORT`) and returns its own address.
pub(crate) async fn start(proxy: String) -> String {
    start_noting(proxy).await.0
}

/// The same; the metadata of each call is recorded.
pub(crate) async fn start_noting(proxy: String) -> (String, Noted) {
    let noted = Noted::default();
    let notes = Arc::clone(&noted);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = format!("tcp://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((socket, _peer)) = listener.accept().await {
            tokio::spawn(serve(socket, proxy.clone(), Arc::clone(&notes)));
        }
    });
    (addr, noted)
}

async fn serve(socket: TcpStream, proxy: String, notes: Noted) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_header_list_size(16 << 20)
        .handshake(socket)
        .await;
    let Ok(mut connection) = handshake else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        notes.lock().expect("no panic").push(request.headers().clone());
        tokio::spawn(relay(request, respond, proxy.clone()));
    }
}

/// Relays one call over a connection of its own. A reset on one side becomes a reset on the other.
async fn relay(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    proxy: String,
) -> Option<()> {
    let stream = TcpStream::connect(&proxy).await.ok()?;
    let (mut sender, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_header_list_size(16 << 20)
        .handshake(stream)
        .await
        .ok()?;
    tokio::spawn(connection);
    let (head, body) = request.into_parts();
    let (response, upload) = sender.send_request(Request::from_parts(head, ()), false).ok()?;
    let up = tokio::spawn(copy(body, upload));
    let response = tokio::select! {
        response = response => response,
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
            up.abort();
            return None;
        }
    };
    match response {
        Ok(response) => {
            let (head, body) = response.into_parts();
            let ends = body.is_end_stream();
            let out = respond.send_response(Response::from_parts(head, ()), ends).ok()?;
            if !ends {
                copy(body, out).await;
            }
        }
        Err(error) => respond.send_reset(error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR)),
    }
    up.abort();
    Some(())
}

async fn copy(mut from: RecvStream, mut to: SendStream<Bytes>) -> Option<()> {
    loop {
        let data = tokio::select! {
            data = from.data() => data,
            _ = std::future::poll_fn(|cx| to.poll_reset(cx)) => return None,
        };
        match data {
            Some(Ok(data)) => {
                let _ = from.flow_control().release_capacity(data.len());
                send(&mut to, data).await.ok()?;
            }
            Some(Err(error)) => {
                to.send_reset(error.reason().unwrap_or(h2::Reason::CANCEL));
                return None;
            }
            None => break,
        }
    }
    match from.trailers().await {
        Ok(Some(trailers)) => to.send_trailers(trailers).ok(),
        Ok(None) => to.send_data(Bytes::new(), true).ok(),
        Err(error) => {
            to.send_reset(error.reason().unwrap_or(h2::Reason::CANCEL));
            None
        }
    }
}
