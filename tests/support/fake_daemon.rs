//! A daemon inside the test process, for faults that a real daemon does not produce on demand.
//!
//! By default it answers like buildkitd as far as a relay can tell. A script replaces any answer.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
};

use buildkit_lb::wire::{self, MessageDecoder, control::RefRequest};
use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, request::Parts};
use tokio::{net::TcpListener, sync::watch};

/// One stream that has arrived.
pub(crate) struct Stream {
    /// The number of the connection on which the stream came.
    pub(crate) connection: usize,
    /// The stream's place among all streams.
    index: usize,
    pub(crate) head: Parts,
    pub(crate) body: RecvStream,
    pub(crate) respond: SendResponse<Bytes>,
    pub(crate) daemon: Arc<State>,
}

/// What the daemon saw of one stream.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// The body, once it has been read to its end.
    pub(crate) message: Bytes,
}

impl Seen {
    /// The session or build of the stream: from the metadata, or from the message.
    pub(crate) fn id(&self) -> String {
        let header = ["x-docker-expose-session-uuid", "buildkit-controlapi-buildid"]
            .into_iter()
            .find_map(|name| self.headers.get(name));
        match header {
            Some(value) => String::from_utf8_lossy(value.as_bytes()).into_owned(),
            None => {
                let request = wire::decode::<RefRequest>(&self.message).unwrap_or_default();
                String::from_utf8_lossy(&request.r#ref).into_owned()
            }
        }
    }
}

type Script = Arc<dyn Fn(Stream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

#[derive(Default)]
pub(crate) struct State {
    seen: Mutex<Vec<Seen>>,
    scripts: Mutex<HashMap<String, Script>>,
    /// What each connection is told to do.
    orders: Mutex<Vec<watch::Sender<Order>>>,
    /// Solves end when this is true.
    done: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Serve,
    GoAway,
    Cut,
}

/// A fake daemon that listens.
pub(crate) struct FakeDaemon {
    pub(crate) name: String,
    port: u16,
    pub(crate) state: Arc<State>,
}

impl FakeDaemon {
    /// Starts a daemon.
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_at(name, 0).await
    }

    /// Starts a daemon on a free port.
    pub(crate) async fn start_at(name: &str, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = Arc::new(State::default());
        let accepting = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _peer)) = listener.accept().await {
                let _ = socket.set_nodelay(true);
                let (number, orders) = accepting.connected();
                tokio::spawn(serve(socket, number, orders, Arc::clone(&accepting)));
            }
        });
        Self { name: name.to_owned(), port, state }
    }

    /// Starts `count` daemons.
    pub(crate) async fn fleet(count: usize) -> Vec<Self> {
        let mut fleet = Vec::new();
        for index in 0..count {
            fleet.push(Self::start(&format!("f{index}")).await);
        }
        fleet
    }

    /// The daemon as the proxy's `--backend` writes it.
    pub(crate) fn backend(&self) -> String {
        self.behind(&self.socket())
    }

    /// The same, reached by way of `socket`, `HOST:PORT`.
    pub(crate) fn behind(&self, socket: &str) -> String {
        format!("{}=tcp://{socket}", self.name)
    }

    /// The daemon's address, `HOST:PORT`.
    pub(crate) fn socket(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Answers `method` with `script`. `method` is the end of the path, for example `Solve` or `LLBBridge/Ping`.
    pub(crate) fn on<F>(&self, method: &str, script: impl Fn(Stream) -> F + Send + Sync + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let script: Script = Arc::new(move |stream| Box::pin(script(stream)));
        self.state.scripts.lock().expect("unpoisoned").insert(method.to_owned(), script);
    }

    /// The streams whose path ends in `method`.
    pub(crate) fn seen(&self, method: &str) -> Vec<Seen> {
        let seen = self.state.seen.lock().expect("unpoisoned");
        seen.iter().filter(|seen| seen.path.ends_with(method)).cloned().collect()
    }

    /// Lets all Solves end, including later ones.
    pub(crate) fn finish(&self) {
        self.state.done.send_replace(true);
    }

    /// Sends a graceful GOAWAY on connection `number`.
    pub(crate) fn go_away(&self, number: usize) {
        self.order(number, Order::GoAway);
    }

    /// Cuts connection `number`.
    pub(crate) fn cut(&self, number: usize) {
        self.order(number, Order::Cut);
    }

    /// Cuts all connections, as a daemon that dies does. New connections are accepted at once.
    pub(crate) fn cut_all(&self) {
        let orders = self.state.orders.lock().expect("unpoisoned");
        for orders in orders.iter() {
            orders.send_replace(Order::Cut);
        }
    }

    fn order(&self, number: usize, order: Order) {
        self.state.orders.lock().expect("unpoisoned")[number].send_replace(order);
    }
}

impl State {
    /// Gives a new connection its number.
    fn connected(&self) -> (usize, watch::Receiver<Order>) {
        let (order, orders) = watch::channel(Order::Serve);
        let mut all = self.orders.lock().expect("unpoisoned");
        all.push(order);
        (all.len() - 1, orders)
    }

    /// Records a new stream.
    fn arrived(&self, connection: usize, head: &Parts) -> usize {
        let seen = Seen {
            connection,
            path: head.uri.path().to_owned(),
            headers: head.headers.clone(),
            message: Bytes::new(),
        };
        let mut all = self.seen.lock().expect("unpoisoned");
        all.push(seen);
        all.len() - 1
    }
}

async fn serve(
    socket: tokio::net::TcpStream,
    connection: usize,
    mut orders: watch::Receiver<Order>,
    daemon: Arc<State>,
) {
    let handshake = h2::server::Builder::new()
        // h2 resets a client with many pending resets. A daemon's library has no such limit, and on a busy machine
        // this daemon accepts calls late.
        .max_pending_accept_reset_streams(usize::MAX)
        .max_header_list_size(16 << 20)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_concurrent_streams(100_000)
        .handshake(socket)
        .await;
    let Ok(mut link) = handshake else { return };
    loop {
        let accepted = tokio::select! {
            accepted = link.accept() => accepted,
            Ok(()) = orders.changed() => match *orders.borrow_and_update() {
                Order::GoAway => {
                    link.graceful_shutdown();
                    continue;
                }
                Order::Cut => return,
                Order::Serve => continue,
            },
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (head, body) = request.into_parts();
        let (index, daemon) = (daemon.arrived(connection, &head), Arc::clone(&daemon));
        let stream = Stream { connection, index, head, body, respond, daemon };
        tokio::spawn(answer(stream));
    }
}

async fn answer(stream: Stream) {
    let path = stream.head.uri.path().to_owned();
    let script = {
        let scripts = stream.daemon.scripts.lock().expect("unpoisoned");
        scripts
            .iter()
            .find(|(method, _)| path.ends_with(*method))
            .map(|(_, script)| Arc::clone(script))
    };
    match script {
        Some(script) => script(stream).await,
        None if path.ends_with("Control/Session") => echo(stream).await,
        None if path.ends_with("Control/Solve") => solve(stream).await,
        None if path.ends_with("Control/Status") => status(stream).await,
        None => empty(stream).await,
    }
}

/// Sends every message back, and ends when the client half-closes.
async fn echo(mut stream: Stream) {
    let Some(mut out) = stream.try_headers() else { return };
    while let Some(Ok(data)) = stream.body.data().await {
        let _ = stream.body.flow_control().release_capacity(data.len());
        if send(&mut out, data).await.is_err() {
            return;
        }
    }
    let _ = out.send_trailers(trailers(0, ""));
}

/// Reads the message, and ends when told to end or when the stream is reset.
async fn solve(mut stream: Stream) {
    stream.read().await;
    let mut done = stream.daemon.done.subscribe();
    let mut respond = stream.respond;
    tokio::select! {
        _ = done.wait_for(|done| *done) => {}
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return,
    }
    if let Ok(mut out) = respond.send_response(head(), false) {
        let _ = send(&mut out, Bytes::from_static(&[0, 0, 0, 0, 0])).await;
        let _ = out.send_trailers(trailers(0, ""));
    }
}

/// Sends headers at once, and ends together with the Solves.
async fn status(mut stream: Stream) {
    stream.read().await;
    let mut done = stream.daemon.done.subscribe();
    let Some(mut out) = stream.try_headers() else { return };
    tokio::select! {
        _ = done.wait_for(|done| *done) => {}
        _ = std::future::poll_fn(|cx| out.poll_reset(cx)) => return,
    }
    let _ = out.send_trailers(trailers(0, ""));
}

/// Answers with one empty message and OK.
async fn empty(mut stream: Stream) {
    stream.read().await;
    let Some(mut out) = stream.try_headers() else { return };
    let _ = send(&mut out, Bytes::from_static(&[0, 0, 0, 0, 0])).await;
    let _ = out.send_trailers(trailers(0, ""));
}

impl Stream {
    /// Sends response headers.
    pub(crate) fn headers(&mut self) -> SendStream<Bytes> {
        self.try_headers().expect("an open stream")
    }

    /// Sends response headers, unless the stream has been reset.
    pub(crate) fn try_headers(&mut self) -> Option<SendStream<Bytes>> {
        self.respond.send_response(head(), false).ok()
    }

    /// Reads the request to its end.
    pub(crate) async fn read(&mut self) -> Bytes {
        let message = read(&mut self.body).await;
        self.daemon.seen.lock().expect("unpoisoned")[self.index].message = message.clone();
        message
    }
}

/// Reads a body to its end.
pub(crate) async fn read(body: &mut RecvStream) -> Bytes {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    all.into()
}

/// Sends `data` within the flow-control windows.
pub(crate) async fn send(out: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        match std::future::poll_fn(|cx| out.poll_capacity(cx)).await {
            Some(Ok(capacity)) => out.send_data(data.split_to(capacity.min(data.len())), false)?,
            Some(Err(error)) => return Err(error),
            None => return Err(h2::Reason::CANCEL.into()),
        }
    }
    Ok(())
}

/// Response headers of a gRPC call.
pub(crate) fn head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// gRPC trailers.
pub(crate) fn trailers(code: i32, message: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    if !message.is_empty() {
        trailers.insert("grpc-message", HeaderValue::from_static(message));
    }
    trailers
}

/// The messages in a body.
pub(crate) fn messages(body: &[u8]) -> Vec<Bytes> {
    let mut decoder = MessageDecoder::new(wire::MAX_MESSAGE_LEN);
    decoder.push(body);
    std::iter::from_fn(|| decoder.next_message().expect("framed messages")).collect()
}
