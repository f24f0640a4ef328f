//! What goes over the wire, frame by frame. An HTTP/2 library hides this from both of its users.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use buildkit_lb::wire::{self, control::SolveRequest};
use bytes::Bytes;
use h2::Reason;
use http::HeaderValue;
use rand::{SeedableRng as _, rngs::StdRng};
use support::{
    eventually,
    fake_daemon::{FakeDaemon, head, send, trailers},
    frames::{
        ACK, CONTINUATION, Cut, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING,
        Passed, RST_STREAM, RawFrames, SETTINGS, Tap, WINDOW_UPDATE, Way, call_block, header_block,
        mutated,
    },
    proxy::{Builder, Proxy},
    raw_client::{Call, RawClient},
};

const EMPTY: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);

/// The largest frame that grpc-go sends and accepts.
const FRAME_LEN: usize = 16 << 10;

/// The largest frame that the proxy accepts.
const ANNOUNCED_LEN: usize = 64 << 10;

/// A daemon, a proxy in front of it, and a tap on each side of the proxy.
struct Tapped {
    daemon: FakeDaemon,
    up: Tap,
    proxy: Proxy,
    down: Tap,
}

impl Tapped {
    async fn start() -> Self {
        let daemon = FakeDaemon::start("only").await;
        let up = Tap::start(&daemon.socket()).await;
        let proxy = Builder::default().backend(&daemon.behind(&up.socket())).start();
        let down = Tap::start(&proxy.socket()).await;
        Self { daemon, up, proxy, down }
    }

    async fn client(&self) -> RawClient {
        RawClient::connect(&self.down.socket()).await
    }

    /// The upstream connection of `build`, once its Solve has arrived.
    fn connection(&self, build: &str) -> usize {
        eventually("the Solve arrives", Duration::from_secs(5), || {
            let solves = self.daemon.seen("Control/Solve");
            solves.into_iter().find(|seen| seen.id() == build).map(|seen| seen.connection)
        })
    }

    /// A Solve and a Status of `build` that have both reached the daemon.
    async fn build(&self, client: &RawClient, build: &str) -> [Call; 2] {
        let calls = [client.solve(build, build).await, client.by_ref("Status", build).await];
        self.connection(build);
        eventually("the Status arrives", Duration::from_secs(5), || {
            self.daemon.seen("Control/Status").iter().any(|seen| seen.id() == build).then_some(())
        });
        calls
    }
}

/// What the client received on its `number`th stream.
fn answer(passed: &[Passed], number: u32) -> Vec<(u8, bool)> {
    passed
        .iter()
        .filter(|frame| frame.way == Way::Down && frame.stream == number * 2 - 1)
        .filter(|frame| frame.kind != WINDOW_UPDATE)
        .map(|frame| (frame.kind, frame.flags & END_STREAM != 0))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_has_the_frames_that_the_daemon_sent_and_no_other() {
    let tapped = Tapped::start().await;
    tapped.daemon.on("Control/Info", |mut stream| async move {
        stream.read().await;
        let mut response = head();
        response.headers_mut().extend(trailers(5, ""));
        let _ = stream.respond.send_response(response, true);
    });
    tapped.daemon.on("Control/ListWorkers", |mut stream| async move {
        stream.read().await;
        let mut out = stream.headers();
        let _ = out.send_trailers(trailers(0, ""));
    });
    tapped.daemon.on("Health/Check", |mut stream| async move {
        stream.read().await;
        let mut out = stream.headers();
        let _ = send(&mut out, EMPTY).await;
        let _ = out.send_trailers(trailers(0, ""));
    });
    let client = tapped.client().await;
    assert_eq!(client.control("Info").await.ended().await.code(), Some(5));
    assert_eq!(client.control("ListWorkers").await.ended().await.code(), Some(0));
    let health = client.send("/grpc.health.v1.Health/Check", &[], EMPTY).await;
    assert_eq!(health.ended().await.code(), Some(0));
    let passed = tapped.down.passed();
    assert_eq!(answer(&passed, 1), [(HEADERS, true)], "trailers-only");
    assert_eq!(answer(&passed, 2), [(HEADERS, false), (HEADERS, true)], "no message");
    assert_eq!(answer(&passed, 3), [(HEADERS, false), (DATA, false), (HEADERS, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxys_own_errors_are_trailers_only() {
    let gone = format!("gone=tcp://127.0.0.1:{}", support::free_port());
    let proxy = Builder::default().backend(&gone).args(&["--max-wait", "0s"]).start();
    let down = Tap::start(&proxy.socket()).await;
    let client = RawClient::connect(&down.socket()).await;
    assert_eq!(client.control("Info").await.ended().await.code(), Some(14));
    assert_eq!(client.solve("r", "s").await.ended().await.code(), Some(14));
    let status = client.by_ref("Status", "r").await.ended().await;
    assert_eq!((status.code(), status.marker()), (Some(0), None));
    let passed = down.passed();
    for call in 1..=3 {
        let frames = answer(&passed, call);
        assert_eq!(frames.first(), Some(&(HEADERS, true)), "call {call}");
        // If a request was answered before it was read, a RST_STREAM tells the sender to stop (RFC 9113 section 8.1).
        assert!(frames[1..].iter().all(|(kind, _)| *kind == RST_STREAM), "call {call}: {frames:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frame_is_larger_than_grpc_go_accepts() {
    let tapped = Tapped::start().await;
    let large = "x".repeat(200_000);
    let sent = large.clone();
    tapped.daemon.on("Control/Info", move |mut stream| {
        let sent = sent.clone();
        async move {
            let body = stream.read().await;
            let mut out = stream.headers();
            let _ = send(&mut out, body).await;
            let mut trailers = trailers(2, "");
            trailers
                .insert("grpc-status-details-bin", HeaderValue::from_str(&sent).expect("ASCII"));
            let _ = out.send_trailers(trailers);
        }
    });
    let client = tapped.client().await;
    let message = [&[0, 0, 0x20, 0, 0][..], &vec![7; 2 << 20]].concat();
    let path = "/moby.buildkit.v1.Control/Info";
    let ended =
        client.send(path, &[("x-large", &large[..40_000])], message.into()).await.ended().await;
    assert_eq!((ended.code(), ended.body.len()), (Some(2), (2 << 20) + 5));
    for (way, tap) in [(Way::Down, &tapped.down), (Way::Up, &tapped.up)] {
        // Frames to the proxy may be larger, because the proxy announces a larger size.
        let passed = tap.passed();
        let sent: Vec<_> =
            passed.iter().filter(|frame| frame.way == way).map(|frame| frame.len).collect();
        let largest = sent.iter().max();
        assert!(largest <= Some(&FRAME_LEN), "{way:?}: {largest:?}");
        // A header list and a body really went in this direction.
        let total: usize = sent.iter().sum();
        assert!(total > 2 << 20, "{way:?}: {total}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_pings_are_answered_and_the_daemon_gets_none() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let build = tapped.build(&client, "r").await;
    let mut session = client.session("r").await.answered().await.expect("headers");
    let mut raw = RawFrames::handshaken(&tapped.proxy.socket()).await;
    for number in 0..300_u64 {
        // grpc-go measures its bandwidth with a PING after every burst of data.
        let payload = number.to_be_bytes().to_vec();
        raw.send(&Frame::new(PING, 0, 0, payload.clone())).await;
        let pong = raw.until(|frame| frame.kind == PING).await.expect("an open connection");
        assert_eq!((pong.flags, &pong.payload[..]), (ACK, &payload[..]));
        send(&mut session.upload, EMPTY).await.expect("sent");
    }
    // Anything that the proxy sends to the daemon because of these frames arrives before these calls, whose ends cause no PING
    // either, although some come in packets of their own.
    for _ in 0..50 {
        assert_eq!(client.bridge("Ping", "r").await.ended().await.code(), Some(0));
    }
    let pings = tapped.up.passed().iter().filter(|f| f.kind == PING && f.flags & ACK == 0).count();
    assert_eq!(pings, 0, "a daemon closes a connection that is pinged (too_many_pings)");
    drop((build, session));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemons_pings_are_answered() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let build = tapped.build(&client, "r").await;
    let connection = tapped.connection("r");
    tapped.up.inject(connection, Frame::new(PING, 0, 0, vec![7; 8]).encode());
    eventually("the PING is answered", Duration::from_secs(20), || {
        let passed = tapped.up.passed();
        let pong = |frame: &Passed| {
            (frame.connection, frame.way, frame.kind) == (connection, Way::Up, PING)
                && frame.flags & ACK != 0
        };
        passed.iter().any(pong).then_some(())
    });
    drop(build);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_goaway_left_out_can_be_sent_again_and_the_others_go_on() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let [solve, status] = tapped.build(&client, "r").await;
    let connection = tapped.connection("r");
    // The Ping is on its way when the daemon announces that it takes no more calls.
    tapped.up.hold(connection, true);
    let ping = client.bridge("Ping", "r").await;
    eventually("the Ping is on its way", Duration::from_secs(10), || {
        (tapped.up.kept(connection) == 1).then_some(())
    });
    tapped.up.inject(connection, Frame::go_away(3, Reason::NO_ERROR).encode());
    let ping = ping.ended().await;
    // The call was certainly not processed (RFC 9113 section 6.8), so the client may repeat it.
    assert_eq!(ping.reset, Some(Reason::REFUSED_STREAM), "{ping:?}");
    tapped.up.hold(connection, false);
    let later = client.bridge("Evaluate", "r").await.ended().await;
    assert_eq!(later.code(), Some(0), "{later:?}");
    assert_eq!(tapped.daemon.seen("Control/Solve").len(), 1);
    tapped.daemon.finish();
    assert_eq!(solve.ended().await.code(), Some(0));
    assert_eq!(status.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_that_may_have_been_seen_is_not_sent_again() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    for reason in [Reason::REFUSED_STREAM, Reason::INTERNAL_ERROR] {
        tapped.daemon.on("Control/Solve", move |mut stream| async move {
            stream.read().await;
            stream.respond.send_reset(reason);
        });
        let before = tapped.daemon.seen("Control/Solve").len();
        let ended = client.solve("r", "r").await.ended().await;
        assert_eq!(ended.reset, Some(reason), "{ended:?}");
        assert_eq!(tapped.daemon.seen("Control/Solve").len(), before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_breaks_in_any_way_costs_its_own_build_alone() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let bystander = tapped.build(&client, "bystander").await;
    let bad: [(&str, Vec<u8>); 9] = [
        ("text", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("DATA on stream 0", Frame::new(DATA, 0, 0, vec![1]).encode()),
        (
            "HEADERS that cannot be read",
            Frame::new(HEADERS, END_HEADERS, 1, vec![0xff; 9]).encode(),
        ),
        ("a frame above the limit", Frame::new(DATA, 0, 1, vec![0; ANNOUNCED_LEN + 1]).encode()),
        ("SETTINGS of odd length", Frame::new(SETTINGS, 0, 0, vec![0; 5]).encode()),
        ("CONTINUATION of nothing", Frame::new(CONTINUATION, 0, 1, vec![0]).encode()),
        ("a window that overflows", Frame::new(WINDOW_UPDATE, 0, 0, vec![0x7f; 4]).encode()),
        ("a stream of its own", Frame::new(HEADERS, END_HEADERS, 2, vec![0x88]).encode()),
        ("GOAWAY with an error", Frame::go_away(0, Reason::ENHANCE_YOUR_CALM).encode()),
    ];
    type Break<'a> = Box<dyn Fn(usize) + 'a>;
    let mut broken: Vec<(String, Break<'_>)> = Vec::new();
    for (what, bytes) in bad {
        let tap = &tapped.up;
        broken.push((what.to_owned(), Box::new(move |on| tap.inject(on, bytes.clone()))));
    }
    for cut in [Cut::Fin, Cut::Rst] {
        let tap = &tapped.up;
        broken.push((format!("{cut:?}"), Box::new(move |on| tap.cut(on, cut))));
    }
    for (number, (what, break_it)) in broken.iter().enumerate() {
        // Builds of one client may belong together and share their link.
        let client = tapped.client().await;
        let build = format!("r{number}");
        let calls = tapped.build(&client, &build).await;
        break_it(tapped.connection(&build));
        for call in calls {
            let ended = call.ended().await;
            let told = (ended.code(), ended.marker());
            assert_eq!(told, (Some(14), Some("backend_lost")), "{what}: {ended:?}");
            assert!(ended.message().contains("backend only was lost"), "{what}: {ended:?}");
        }
    }
    assert_eq!(client.bridge("Ping", "bystander").await.ended().await.code(), Some(0));
    tapped.daemon.finish();
    for call in bystander {
        assert_eq!(call.ended().await.code(), Some(0));
    }
    assert!(!tapped.proxy.process.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_one_stream_leaves_its_siblings_alone() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let [solve, status] = tapped.build(&client, "r").await;
    // Solve is the first stream of its connection, Status the second.
    let reset = Frame::reset(3, Reason::ENHANCE_YOUR_CALM).encode();
    tapped.up.inject(tapped.connection("r"), reset);
    assert_eq!(status.ended().await.reset, Some(Reason::ENHANCE_YOUR_CALM));
    assert_eq!(client.bridge("Ping", "r").await.ended().await.code(), Some(0));
    tapped.daemon.finish();
    assert_eq!(solve.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_connection_breaks_cancels_all_its_calls() {
    for cut in [Cut::Fin, Cut::Rst] {
        let tapped = Tapped::start().await;
        let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
        for method in ["Control/Solve", "Control/Session", "Control/Status", "LLBBridge/Solve"] {
            let told = told.clone();
            tapped.daemon.on(method, move |mut stream| {
                let told = told.clone();
                async move {
                    // There is no answer yet, as during the hours of a long build.
                    let _ = std::future::poll_fn(|cx| stream.respond.poll_reset(cx)).await;
                    let _ = told.send(method);
                }
            });
        }
        let client = tapped.client().await;
        let _calls = [
            client.solve("r", "s").await,
            client.session("s").await,
            client.by_ref("Status", "r").await,
            client.bridge("Solve", "r").await,
        ];
        eventually("all arrive", Duration::from_secs(5), || {
            ["Control/Solve", "Control/Session", "Control/Status", "LLBBridge/Solve"]
                .iter()
                .all(|method| tapped.daemon.seen(method).len() == 1)
                .then_some(())
        });
        tapped.down.cut(0, cut);
        for _ in 0..4 {
            let tell = tokio::time::timeout(Duration::from_secs(20), tells.recv()).await;
            assert!(tell.is_ok(), "{cut:?}: the daemon must hear of it");
        }
    }
}

/// SETTINGS_INITIAL_WINDOW_SIZE, if `settings` contains it.
fn window(settings: &Frame) -> Option<u32> {
    let window = settings.payload.chunks_exact(6).find(|setting| setting[..2] == [0, 4])?;
    Some(u32::from_be_bytes(window[2..].try_into().expect("four bytes")))
}

fn is_settings(frame: &Frame) -> bool {
    frame.kind == SETTINGS && !frame.has(ACK)
}

/// A daemon that reads each Session to its end, and a proxy in front of it.
async fn with_a_reader() -> (FakeDaemon, Proxy) {
    let daemon = FakeDaemon::start("only").await;
    daemon.on("Control/Session", |mut stream| async move {
        let mut out = stream.headers();
        stream.read().await;
        let _ = out.send_trailers(trailers(0, ""));
    });
    let proxy = Builder::default().backend(&daemon.backend()).start();
    (daemon, proxy)
}

/// Sends `len` bytes of DATA, whatever the window is.
async fn send_data(client: &mut RawFrames, stream: u32, len: usize) {
    for at in (0..len).step_by(FRAME_LEN) {
        let piece = vec![0; FRAME_LEN.min(len - at)];
        client.send(&Frame::new(DATA, 0, stream, piece)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_are_small_until_something_is_bound_and_large_from_then_on() {
    const SMALL: usize = 64 << 10;
    const LARGE: usize = 1 << 20;
    let (daemon, proxy) = with_a_reader().await;
    let mut client = RawFrames::handshaken(&proxy.socket()).await;
    let first = client.until(is_settings).await.expect("settings");
    assert_eq!(window(&first), Some(SMALL as u32));
    client.send(&Frame::new(SETTINGS, ACK, 0, Bytes::new())).await;

    let uuid = [("x-docker-expose-session-uuid", "s")];
    let session = call_block("/moby.buildkit.v1.Control/Session", &uuid);
    client.send(&Frame::new(HEADERS, END_HEADERS, 1, session)).await;
    send_data(&mut client, 1, SMALL).await;
    client.send(&Frame::new(PING, 0, 0, vec![7; 8])).await;
    let next = client.until(|frame| is_settings(frame) || frame.kind == PING).await;
    assert_eq!(next.expect("an answer").kind, PING, "nothing is bound yet");

    let solve = call_block("/moby.buildkit.v1.Control/Solve", &[]);
    client.send(&Frame::new(HEADERS, END_HEADERS, 3, solve)).await;
    let request =
        SolveRequest { r#ref: "r".into(), session: "s".into(), ..SolveRequest::default() };
    client.send(&Frame::new(DATA, END_STREAM, 3, wire::encode(&request))).await;
    client.until(|frame| frame.kind == HEADERS && frame.stream == 1).await.expect("the session");
    // The session has been read, so at least half of its window is free again.
    send_data(&mut client, 1, SMALL / 2).await;
    let second = client.until(is_settings).await.expect("settings");
    assert_eq!(window(&second), Some(LARGE as u32));
    client.send(&Frame::new(SETTINGS, ACK, 0, Bytes::new())).await;
    client.until(|frame| frame.kind == WINDOW_UPDATE && frame.stream == 0).await.expect("more");
    // Sent at once, without a check of the windows.
    send_data(&mut client, 1, LARGE - SMALL).await;
    client.send(&Frame::new(DATA, END_STREAM, 1, Bytes::new())).await;
    let ends =
        |frame: &Frame| frame.stream == 1 && frame.has(END_STREAM) | (frame.kind == RST_STREAM);
    let end = client.until(ends).await.expect("the session's end");
    assert_eq!(end.kind, HEADERS, "it ends as the daemon ended it");
    let sessions = daemon.seen("Control/Session");
    assert_eq!(sessions[0].message.len(), SMALL + SMALL / 2 + LARGE - SMALL);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_confirms_no_settings_keeps_small_windows_and_is_served() {
    let (_daemon, proxy) = with_a_reader().await;
    let mut client = RawFrames::handshaken(&proxy.socket()).await;
    let uuid = [("x-docker-expose-session-uuid", "s")];
    let session = call_block("/moby.buildkit.v1.Control/Session", &uuid);
    client.send(&Frame::new(HEADERS, END_HEADERS, 1, session)).await;
    client.until(|frame| frame.kind == HEADERS).await.expect("a session without a Solve");
    send_data(&mut client, 1, 48 << 10).await;
    client.send(&Frame::new(DATA, END_STREAM, 1, Bytes::new())).await;
    let end = client.until(|frame| is_settings(frame) || frame.has(END_STREAM)).await;
    assert_eq!(end.expect("the session's end").kind, HEADERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_holds_up_nobody_else() {
    const STREAMS: u32 = 40;
    let daemon = FakeDaemon::start("only").await;
    let from_daemon = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&from_daemon);
    daemon.on("Content/Status", move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            stream.read().await;
            let mut out = stream.headers();
            while send(&mut out, Bytes::from(vec![7; 32 << 10])).await.is_ok() {
                counter.fetch_add(32 << 10, Ordering::Relaxed);
            }
        }
    });
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let mut stuck = RawFrames::handshaken(&proxy.socket()).await;
    let block = call_block("/containerd.services.content.v1.Content/Status", &[]);
    for number in 0..STREAMS {
        // The client never grants more than its window of 64 KiB, which all its streams share.
        let stream = number * 2 + 1;
        stuck.send(&Frame::new(HEADERS, END_HEADERS, stream, block.clone())).await;
        stuck.send(&Frame::new(DATA, END_STREAM, stream, EMPTY)).await;
    }
    let mut counts = Vec::new();
    eventually("the daemon may send no more", Duration::from_secs(20), || {
        counts.push(from_daemon.load(Ordering::Relaxed));
        let last = counts.rchunks(10).next().filter(|last| last.len() == 10)?;
        (last[0] > 0 && last.iter().all(|count| *count == last[0])).then_some(())
    });
    assert_eq!(daemon.seen("Content/Status").len(), STREAMS as usize);
    let client = RawClient::connect(&proxy.socket()).await;
    let info = client.control("ListWorkers").await.ended();
    let info = tokio::time::timeout(Duration::from_secs(3), info).await;
    assert_eq!(info.expect("others are served").code(), Some(0));
    // What the client has not taken is in the proxy, or in sockets.
    let taken = from_daemon.load(Ordering::Relaxed);
    assert!(taken < 32 << 20, "{taken} bytes were taken for {STREAMS} streams");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_goodbye_and_takes_the_calls_on_their_way() {
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let [solve, _status] = tapped.build(&client, "r").await;
    // The closed idle connection shows that the drain has come to closing connections without builds.
    let idle = tapped.client().await;
    assert_eq!(idle.control("Info").await.ended().await.code(), Some(0));
    tapped.proxy.process.signal("TERM");
    let said = |connection: usize| {
        let goodbye = |f: &Passed| (f.connection, f.kind, f.way) == (connection, GOAWAY, Way::Down);
        tapped.down.passed().iter().any(goodbye)
    };
    eventually("GOAWAY without a build", Duration::from_secs(20), || said(1).then_some(()));
    assert_eq!(client.bridge("Evaluate", "r").await.ended().await.code(), Some(0));
    assert!(!said(0), "a build runs: its later calls must get through");
    tapped.daemon.finish();
    assert_eq!(solve.ended().await.code(), Some(0));
    eventually("GOAWAY", Duration::from_secs(20), || said(0).then_some(()));
}

/// The frames of a daemon's answers to a Solve (stream 1) and a Status (stream 3).
fn answers() -> Vec<Vec<u8>> {
    let head = header_block(&[(":status", "200"), ("content-type", "application/grpc")]);
    let end = header_block(&[("grpc-status", "2"), ("grpc-message", "no"), ("x-bin", "AAE")]);
    let mut frames = vec![Frame::new(SETTINGS, 0, 0, vec![0, 5, 0, 0, 0x40, 0]).encode()];
    for stream in [1, 3] {
        frames.push(Frame::new(HEADERS, END_HEADERS, stream, head.clone()).encode());
        frames.push(Frame::new(DATA, 0, stream, EMPTY).encode());
    }
    frames.push(Frame::new(WINDOW_UPDATE, 0, 1, vec![0, 0, 1, 0]).encode());
    frames.push(Frame::new(PING, 0, 0, vec![1; 8]).encode());
    frames.push(Frame::new(HEADERS, END_HEADERS | END_STREAM, 3, end.clone()).encode());
    frames.push(Frame::reset(1, Reason::INTERNAL_ERROR).encode());
    frames.push(Frame::new(HEADERS, END_HEADERS | END_STREAM, 1, end).encode());
    frames.push(Frame::go_away(3, Reason::NO_ERROR).encode());
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_answers_nonsense_harms_no_other_build() {
    const ROUNDS: u64 = 400;
    let tapped = Tapped::start().await;
    let client = tapped.client().await;
    let bystander = tapped.build(&client, "bystander").await;
    let rounds = (0..8).map(|worker| {
        let tapped = &tapped;
        async move {
            for round in (worker..ROUNDS).step_by(8) {
                let mut rng = StdRng::seed_from_u64(round);
                let client = tapped.client().await;
                let build = format!("r{round}");
                let calls =
                    [client.solve(&build, &build).await, client.by_ref("Status", &build).await];
                let ping = client.bridge("Ping", &build).await.ended().await;
                assert_eq!(ping.code(), Some(0), "round {round}: {ping:?}");
                let nonsense = mutated(&answers(), &mut rng).concat();
                tapped.up.inject(tapped.connection(&build), nonsense);
                for call in calls {
                    // Some calls stay open, because no frame ended them.
                    let _ = tokio::time::timeout(Duration::from_millis(100), call.ended()).await;
                }
            }
        }
    });
    futures_util::future::join_all(rounds).await;
    assert!(!tapped.proxy.process.log().contains("panicked"));
    assert_eq!(client.bridge("Ping", "bystander").await.ended().await.code(), Some(0));
    eventually("only the bystander is left", Duration::from_secs(10), || {
        let gauge = |name| tapped.proxy.metric(name, &[]);
        (gauge("buildkit_lb_builds_active") == 1.0 && gauge("buildkit_lb_parked_streams") == 0.0)
            .then_some(())
    });
    tapped.daemon.finish();
    for call in bystander {
        assert_eq!(call.ended().await.code(), Some(0));
    }
}
