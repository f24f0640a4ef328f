//! The bytes that pass while a build waits, and after the wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use buildkit_lb::wire::{
    self, MessageDecoder,
    control::{BytesMessage, StatusResponse},
};
use bytes::Bytes;
use h2::{RecvStream, SendStream};

use crate::support::{
    eventually,
    fake_daemon::{FakeDaemon, send, trailers},
    free_port,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};

/// The longest time that anything expected may take.
const WAIT: Duration = Duration::from_secs(20);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const CONFIRMATION: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
/// What a BuildKit client sends first: SETTINGS and a WINDOW_UPDATE.
const GREETING: &[u8] =
    &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 250, 0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 15, 0, 1];

/// A proxy whose only daemon has not started yet, and the address where the daemon will listen.
fn proxy_alone() -> (Proxy, u16) {
    proxy_alone_with(&[])
}

fn proxy_alone_with(args: &[&str]) -> (Proxy, u16) {
    let port = free_port();
    let backend = format!("late=tcp://127.0.0.1:{port}");
    (Builder::default().backend(&backend).args(args).start(), port)
}

fn message(data: &[u8]) -> Bytes {
    wire::encode(&BytesMessage { data: Bytes::copy_from_slice(data) })
}

/// The messages of a stream, one by one.
struct Reader {
    body: RecvStream,
    messages: MessageDecoder,
}

impl Reader {
    fn new(body: RecvStream) -> Self {
        Self { body, messages: MessageDecoder::new(wire::MAX_MESSAGE_LEN) }
    }

    /// The next message, or `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let next = async {
            loop {
                if let Some(message) = self.messages.next_message().expect("framed") {
                    return Some(message);
                }
                let data = self.body.data().await?.expect("no reset");
                let _ = self.body.flow_control().release_capacity(data.len());
                self.messages.push(&data);
            }
        };
        tokio::time::timeout(WAIT, next).await.expect("a message or an end in time")
    }

    /// The grpc-status after the last message.
    async fn code(&mut self) -> String {
        assert_eq!(self.next().await, None);
        let trailers = self.body.trailers().await.expect("no reset").expect("trailers");
        trailers["grpc-status"].to_str().expect("a number").to_owned()
    }

    /// The bytes in the next message of a Session.
    async fn inner(&mut self) -> Bytes {
        let message = self.next().await.expect("a message");
        wire::decode::<BytesMessage>(&message).expect("a BytesMessage").data
    }

    /// The next message of a Status.
    async fn status(&mut self) -> StatusResponse {
        let message = self.next().await.expect("a message");
        wire::decode(&message).expect("a StatusResponse")
    }
}

async fn say(out: &mut SendStream<Bytes>, message: Bytes) {
    send(out, message).await.expect("an open stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_with_its_daemon_where_the_proxy_began_it() {
    let (proxy, port) = proxy_alone();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    say(&mut session.upload, message(GREETING)).await;
    let _solve = client.solve("r", "s").await;
    let mut session = session.answered().await.expect("headers");
    let mut reader = Reader::new(session.body);
    assert_eq!(reader.inner().await, [PREFACE, EMPTY_SETTINGS].concat());
    say(&mut session.upload, message(CONFIRMATION)).await;

    let daemon = FakeDaemon::start_at("late", port).await;
    daemon.on("Control/Session", |mut stream| async move {
        let mut out = stream.headers();
        say(&mut out, message(PREFACE)).await;
        say(&mut out, message(b"the daemon's settings")).await;
        // The daemon sends the client's own bytes back.
        while let Some(Ok(data)) = stream.body.data().await {
            let _ = stream.body.flow_control().release_capacity(data.len());
            say(&mut out, data).await;
        }
        let _ = out.send_trailers(trailers(0, ""));
    });
    assert_eq!(reader.inner().await, "the daemon's settings");
    assert_eq!(reader.inner().await, GREETING);
    for sent in ["one", "two"] {
        say(&mut session.upload, message(sent.as_bytes())).await;
        assert_eq!(reader.inner().await, sent);
    }
    session.upload.send_data(Bytes::new(), true).expect("open");
    assert_eq!(reader.code().await, "0");
    assert_eq!(daemon.seen("Control/Session").len(), 1);
}

/// An inner DATA frame that contains `number` repeatedly.
fn data_frame(number: u8) -> Bytes {
    const LEN: u16 = 16_000;
    let [high, low] = LEN.to_be_bytes();
    let mut frame = vec![0, high, low, 0, 0, 0, 0, 0, 1];
    frame.resize(9 + usize::from(LEN), number);
    message(&frame)
}

/// Far more than the proxy keeps of a waiting Session and than the windows before the proxy hold.
const FRAMES: u8 = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_much_while_it_waits_is_stopped_and_loses_nothing() {
    let (proxy, port) = proxy_alone();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    let _solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await;
    say(&mut session.upload, message(GREETING)).await;
    let (mut upload, answer) = session.into_parts();
    let sent = Arc::new(AtomicU8::new(0));
    let sending = Arc::clone(&sent);
    let sender = tokio::spawn(async move {
        say(&mut upload, message(CONFIRMATION)).await;
        for number in 0..FRAMES {
            say(&mut upload, data_frame(number)).await;
            sending.store(number + 1, Ordering::Relaxed);
        }
        upload
    });
    // By then the client would have sent everything to a proxy that reads on.
    let status = status.answered().await.expect("headers");
    Reader::new(status.body).status().await;
    let before = sent.load(Ordering::Relaxed);
    assert!((2..FRAMES / 4).contains(&before), "{before} frames");

    let daemon = FakeDaemon::start_at("late", port).await;
    let (told, mut received) = tokio::sync::mpsc::unbounded_channel();
    daemon.on("Control/Session", move |mut stream| {
        let told = told.clone();
        async move {
            let mut out = stream.headers();
            say(&mut out, message(PREFACE)).await;
            let mut reader = Reader::new(stream.body);
            while let Some(message) = reader.next().await {
                let message = wire::decode::<BytesMessage>(&message).expect("a BytesMessage");
                let _ = told.send(message.data);
            }
            let _ = out.send_trailers(trailers(0, ""));
        }
    });
    let mut upload = sender.await.expect("all is sent");
    upload.send_data(Bytes::new(), true).expect("open");
    let mut reader = Reader::new(answer.await.expect("headers").into_body());
    assert_eq!(reader.inner().await, [PREFACE, EMPTY_SETTINGS].concat());
    assert_eq!(reader.code().await, "0");
    let mut all = Vec::new();
    while let Some(data) = received.recv().await {
        all.extend_from_slice(&data);
        if all.len() >= GREETING.len() + usize::from(FRAMES) * 16_009 {
            break;
        }
    }
    let mut expected = GREETING.to_vec();
    for number in 0..FRAMES {
        let frame = wire::decode::<BytesMessage>(&data_frame(number)).expect("its own");
        expected.extend_from_slice(&frame.data);
    }
    assert!(all == expected, "{} bytes of {}", all.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_its_client_closes_ends_at_once() {
    let (proxy, _port) = proxy_alone();
    let client = RawClient::connect(&proxy.socket()).await;
    let session = client.session("s").await;
    let _solve = client.solve("r", "s").await;
    let mut session = session.answered().await.expect("headers");
    session.upload.send_data(Bytes::new(), true).expect("open");
    let mut reader = Reader::new(session.body);
    reader.inner().await;
    assert_eq!(reader.code().await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_shows_the_wait_and_then_what_its_daemon_says() {
    let (proxy, port) = proxy_alone();
    let client = RawClient::connect(&proxy.socket()).await;
    let _solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await.answered().await.expect("headers");
    assert!(status.headers.contains_key("buildkit-current-timestamp"), "{:?}", status.headers);
    let mut reader = Reader::new(status.body);
    let started = reader.status().await;
    assert_eq!(started.vertexes[0].name, "[internal] waiting for a builder");
    assert_eq!(started.vertexes[0].completed, None);
    let line = "1st in the queue of pool default; no backend is ready\n";
    assert_eq!(started.logs[0].msg, line);

    let daemon = FakeDaemon::start_at("late", port).await;
    daemon.on("Control/Status", |mut stream| async move {
        let mut out = stream.headers();
        say(&mut out, message(b"as it is")).await;
        let _ = out.send_trailers(trailers(5, ""));
    });
    let completed = reader.status().await;
    assert!(completed.vertexes[0].completed.is_some());
    assert_eq!(completed.vertexes[0].digest, started.vertexes[0].digest);
    assert_eq!(reader.next().await, Some(message(b"as it is")));
    assert_eq!(reader.code().await, "5");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_is_not_to_be_shown_is_not() {
    let (proxy, port) = proxy_alone_with(&["--queue-progress", "false"]);
    let client = RawClient::connect(&proxy.socket()).await;
    let _solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await.answered().await.expect("headers");
    let daemon = FakeDaemon::start_at("late", port).await;
    daemon.on("Control/Status", |mut stream| async move {
        let mut out = stream.headers();
        say(&mut out, message(b"as it is")).await;
        let _ = out.send_trailers(trailers(0, ""));
    });
    let mut reader = Reader::new(status.body);
    assert_eq!(reader.next().await, Some(message(b"as it is")));
    assert_eq!(reader.code().await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_its_client_gives_up_ends_at_once_and_no_daemon_sees_it() {
    let (proxy, port) = proxy_alone();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut solve = client.solve("given-up", "s").await;
    let status = client.by_ref("Status", "given-up").await.answered().await.expect("headers");
    let mut reader = Reader::new(status.body);
    reader.status().await;
    solve.upload.send_reset(h2::Reason::CANCEL);
    assert!(reader.status().await.vertexes[0].completed.is_some());
    assert_eq!(reader.code().await, "0");

    let daemon = FakeDaemon::start_at("late", port).await;
    proxy.wait_ready(1, WAIT);
    // Another build reaches the daemon. A Solve of the cancelled build would have arrived before.
    let _other = client.solve("other", "t").await;
    eventually("the other build is there", WAIT, || {
        let solves = daemon.seen("Control/Solve");
        solves.iter().any(|solve| solve.id() == "other").then_some(())
    });
    assert_eq!(daemon.seen("Control/Solve").len(), 1);
    assert_eq!(daemon.seen("Control/Status").len(), 0);
}
