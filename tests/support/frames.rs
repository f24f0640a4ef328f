//! HTTP/2 frame by frame: a tap that observes and disturbs what passes, and a client that sends what no library would
//! send.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use rand::{Rng, RngExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What a client sends first (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const HEAD_LEN: usize = 9;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Bytes,
}

impl Frame {
    pub(crate) fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Bytes>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// GOAWAY: no stream above `last` was or will be served.
    pub(crate) fn go_away(last: u32, reason: h2::Reason) -> Self {
        let payload = [last.to_be_bytes(), u32::from(reason).to_be_bytes()].concat();
        Self::new(GOAWAY, 0, 0, payload)
    }

    pub(crate) fn reset(stream: u32, reason: h2::Reason) -> Self {
        Self::new(RST_STREAM, 0, stream, u32::from(reason).to_be_bytes().to_vec())
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let len = u32::try_from(self.payload.len()).expect("a frame's length");
        let head = [&len.to_be_bytes()[1..], &[self.kind, self.flags], &self.stream.to_be_bytes()];
        [&head.concat(), &self.payload[..]].concat()
    }

    fn cut(from: &mut BytesMut) -> Option<Self> {
        let head = from.get(..HEAD_LEN)?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if from.len() < HEAD_LEN + len {
            return None;
        }
        let mut head = from.split_to(HEAD_LEN).freeze().slice(3..);
        let (kind, flags, stream) = (head.get_u8(), head.get_u8(), head.get_u32());
        Some(Self { kind, flags, stream, payload: from.split_to(len).freeze() })
    }
}

/// A header block of literals, without table and Huffman code (RFC 7541 section 6.2.2).
pub(crate) fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            put_len(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

fn put_len(block: &mut Vec<u8>, len: usize) {
    if len < 127 {
        block.push(u8::try_from(len).expect("below 127"));
        return;
    }
    block.push(127);
    let mut rest = len - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).expect("below 128") | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).expect("below 128"));
}

/// The header block of a gRPC call.
pub(crate) fn call_block(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let call = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "build.example"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    header_block(&[&call[..], more].concat())
}

/// A client that sends exactly the bytes that the test gives it.
#[derive(Debug)]
pub(crate) struct RawFrames {
    socket: TcpStream,
    pending: BytesMut,
}

impl RawFrames {
    /// Connects and sends nothing.
    pub(crate) async fn connect(socket: &str) -> Self {
        let socket = TcpStream::connect(socket).await.expect("the proxy accepts");
        Self { socket, pending: BytesMut::new() }
    }

    /// Connects, and sends the preface and empty SETTINGS like any client.
    pub(crate) async fn handshaken(socket: &str) -> Self {
        let mut client = Self::connect(socket).await;
        client.write(PREFACE).await;
        client.send(&Frame::new(SETTINGS, 0, 0, Bytes::new())).await;
        client
    }

    /// Sends bytes. If the other side has closed, the next read shows it.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    pub(crate) async fn send(&mut self, frame: &Frame) {
        self.write(&frame.encode()).await;
    }

    /// The next frame, or `None` if the other side has closed.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = Frame::cut(&mut self.pending) {
                return Some(frame);
            }
            if !matches!(self.socket.read_buf(&mut self.pending).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// All frames until the other side closes or stays silent for `limit`.
    pub(crate) async fn rest(&mut self, limit: Duration) -> (Vec<Frame>, bool) {
        let mut frames = Vec::new();
        loop {
            match tokio::time::timeout(limit, self.next()).await {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return (frames, true),
                Err(_elapsed) => return (frames, false),
            }
        }
    }

    /// The first frame that `wanted` accepts. Frames before it are dropped.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let search = async {
            loop {
                let frame = self.next().await?;
                if wanted(&frame) {
                    return Some(frame);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), search).await.expect("an answer in time")
    }
}

/// The direction in which a frame went through a [`Tap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Way {
    /// From the side that dialled.
    Up,
    /// To the side that dialled.
    Down,
}

/// A frame that passed.
#[derive(Debug, Clone)]
pub(crate) struct Passed {
    pub(crate) connection: usize,
    pub(crate) way: Way,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) len: usize,
}

/// What is done to one connection of a [`Tap`].
#[derive(Debug, Clone, Default)]
struct Orders {
    /// Frames from the side that dialled are kept back.
    held: bool,
    /// Bytes to send once to the side that dialled. The number tells the requests apart.
    inject: (usize, Bytes),
    cut: Option<Cut>,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// FIN on both sides.
    Fin,
    /// RST on both sides.
    Rst,
}

#[derive(Default)]
struct Shared {
    passed: Mutex<Vec<Passed>>,
    /// How many calls are kept back on each connection.
    kept: Mutex<HashMap<usize, usize>>,
    orders: Mutex<HashMap<usize, watch::Sender<Orders>>>,
}

/// A TCP hop that understands frames.
pub(crate) struct Tap {
    port: u16,
    shared: Arc<Shared>,
}

impl Tap {
    /// Starts a tap in front of `upstream`, `HOST:PORT`.
    pub(crate) async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared::default());
        let (upstream, accepting) = (upstream.to_owned(), Arc::clone(&shared));
        tokio::spawn(async move {
            // One connection after the other, so that both sides give it the same number.
            for connection in 0.. {
                let Ok((down, _peer)) = listener.accept().await else { return };
                let Ok(up) = TcpStream::connect(&upstream).await else { return };
                accepting.serve(connection, down, up);
            }
        });
        Self { port, shared }
    }

    /// The tap's address.
    pub(crate) fn socket(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The frames that have passed so far.
    pub(crate) fn passed(&self) -> Vec<Passed> {
        self.shared.passed.lock().expect("unpoisoned").clone()
    }

    /// Keeps back what the side that dialled sends from now on, or lets it pass.
    pub(crate) fn hold(&self, connection: usize, held: bool) {
        self.order(connection, |orders| orders.held = held);
    }

    /// How many calls of a connection are kept back.
    pub(crate) fn kept(&self, connection: usize) -> usize {
        self.shared.kept.lock().expect("unpoisoned").get(&connection).copied().unwrap_or(0)
    }

    /// Sends bytes to the side that dialled, between two frames.
    pub(crate) fn inject(&self, connection: usize, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.order(connection, |orders| orders.inject = (orders.inject.0 + 1, bytes));
    }

    /// Ends a connection.
    pub(crate) fn cut(&self, connection: usize, cut: Cut) {
        self.order(connection, |orders| orders.cut = Some(cut));
    }

    fn order(&self, connection: usize, change: impl FnOnce(&mut Orders)) {
        let orders = self.shared.orders.lock().expect("unpoisoned");
        orders[&connection].send_modify(change);
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, connection: usize, down: TcpStream, up: TcpStream) {
        for socket in [&down, &up] {
            let _ = socket.set_nodelay(true);
        }
        let (orders, told) = watch::channel(Orders::default());
        self.orders.lock().expect("unpoisoned").insert(connection, orders);
        let (from_down, to_down) = down.into_split();
        let (from_up, to_up) = up.into_split();
        let hop = |way, from, to| Hop {
            shared: Arc::clone(self),
            connection,
            way,
            from,
            to,
            orders: told.clone(),
            injected: 0,
            pending: BytesMut::new(),
        };
        tokio::spawn(hop(Way::Up, from_down, to_up).run(PREFACE.len()));
        tokio::spawn(hop(Way::Down, from_up, to_down).run(0));
    }
}

/// One direction of one connection.
struct Hop {
    shared: Arc<Shared>,
    connection: usize,
    way: Way,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    orders: watch::Receiver<Orders>,
    injected: usize,
    pending: BytesMut,
}

impl Hop {
    async fn run(mut self, mut preface: usize) {
        loop {
            let orders = self.orders.borrow_and_update().clone();
            if let Some(cut) = orders.cut {
                return self.cut(cut);
            }
            if self.way == Way::Down && orders.inject.0 > self.injected {
                self.injected = orders.inject.0;
                let _ = self.to.write_all(&orders.inject.1).await;
            }
            let held = self.way == Way::Up && orders.held;
            if held {
                self.count_kept();
            }
            if !held && self.pass(&mut preface).await.is_err() {
                return;
            }
            tokio::select! {
                told = self.orders.changed() => if told.is_err() { return },
                read = self.from.read_buf(&mut self.pending) => match read {
                    Ok(1..) => {}
                    _ => {
                        let _ = self.to.shutdown().await;
                        return;
                    }
                },
            }
        }
    }

    fn count_kept(&self) {
        let mut pending = self.pending.clone();
        let frames = std::iter::from_fn(|| Frame::cut(&mut pending));
        let calls = frames.filter(|frame| frame.kind == HEADERS).count();
        self.shared.kept.lock().expect("unpoisoned").insert(self.connection, calls);
    }

    /// Sends on what has arrived as whole frames.
    async fn pass(&mut self, preface: &mut usize) -> std::io::Result<()> {
        if *preface > 0 && self.pending.len() >= *preface {
            self.to.write_all(&self.pending.split_to(*preface)).await?;
            *preface = 0;
        }
        while *preface == 0
            && let Some(frame) = Frame::cut(&mut self.pending)
        {
            self.shared.passed.lock().expect("unpoisoned").push(Passed {
                connection: self.connection,
                way: self.way,
                kind: frame.kind,
                flags: frame.flags,
                stream: frame.stream,
                len: frame.payload.len(),
            });
            self.to.write_all(&frame.encode()).await?;
        }
        Ok(())
    }

    fn cut(self, cut: Cut) {
        if cut == Cut::Rst {
            // With this option closing sends RST, once both halves of the socket are dropped.
            let zero = Some(Duration::ZERO);
            let _ = socket2::SockRef::from(self.to.as_ref()).set_linger(zero);
            let _ = socket2::SockRef::from(self.from.as_ref()).set_linger(zero);
            // A dropped half would send FIN first.
            self.to.forget();
        }
    }
}

/// A conversation with one to four faults in it: bytes changed, frames lost, doubled, swapped or cut.
pub(crate) fn mutated(conversation: &[Vec<u8>], rng: &mut impl Rng) -> Vec<Vec<u8>> {
    let mut frames = conversation.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        let [one, other] = [(); 2].map(|()| rng.random_range(0..frames.len()));
        match rng.random_range(0..6) {
            0 => drop(frames.remove(one)),
            1 => frames.insert(other, frames[one].clone()),
            2 => frames.swap(one, other),
            3 => {
                let at = rng.random_range(0..=frames[one].len());
                frames[one].truncate(at);
            }
            // Heads are short, and most faults have an effect there.
            4 => change(&mut frames[one], HEAD_LEN, rng),
            _ => change(&mut frames[one], usize::MAX, rng),
        }
        if frames.is_empty() {
            break;
        }
    }
    frames
}

fn change(frame: &mut [u8], within: usize, rng: &mut impl Rng) {
    if !frame.is_empty() {
        let at = rng.random_range(0..frame.len().min(within));
        frame[at] = rng.random();
    }
}
