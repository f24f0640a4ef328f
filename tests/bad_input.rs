//! Bad input of any kind gets a clear error, is counted, and harms nobody else's build.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use buildkit_lb::{
    ids::SessionId,
    wire::{self, control::SolveRequest},
};
use bytes::Bytes;
use h2::Reason;
use prost::Message as _;
use rand::{SeedableRng as _, rngs::StdRng};
use support::{
    eventually,
    fake_daemon::{FakeDaemon, Seen},
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PING, PREFACE, RawFrames,
        SETTINGS, WINDOW_UPDATE, call_block, mutated,
    },
    proxy::{Builder, Proxy},
    raw_client::{Ended, RawClient},
};

const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";

/// A proxy with a build that runs while the test sends bad input.
struct Victim {
    daemon: FakeDaemon,
    proxy: Proxy,
    client: RawClient,
    solve: support::raw_client::Call,
}

impl Victim {
    async fn start() -> Self {
        let daemon = FakeDaemon::start("only").await;
        let proxy = Builder::default().backend(&daemon.backend()).start();
        let client = RawClient::connect(&proxy.socket()).await;
        let solve = client.solve("bystander", "bystander").await;
        assert_eq!(client.bridge("Ping", "bystander").await.ended().await.code(), Some(0));
        Self { daemon, proxy, client, solve }
    }

    fn rejected(&self, reason: &str) -> f64 {
        self.proxy.metric("buildkit_lb_rejected_total", &[&format!("\"{reason}\"")])
    }

    /// The build that ran meanwhile ends well.
    async fn unharmed(self) {
        let ping = self.client.bridge("Ping", "bystander").await.ended().await;
        assert_eq!(ping.code(), Some(0), "{ping:?}");
        self.daemon.finish();
        assert_eq!(self.solve.ended().await.code(), Some(0));
    }
}

fn framed(flag: u8, len: u32, payload: &[u8]) -> Bytes {
    [&[flag], &len.to_be_bytes()[..], payload].concat().into()
}

fn assert_refused(ended: &Ended, code: i32, marker: &str) {
    assert_eq!((ended.code(), ended.marker()), (Some(code), Some(marker)), "{ended:?}");
    assert!(!ended.message().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_that_is_no_solve_is_refused_with_its_cause() {
    let victim = Victim::start().await;
    for bad in [
        framed(0, 99, b"short"),
        framed(9, 1, b"x"),
        framed(1, 4, b"gzip"),
        framed(0, 3, &[0x0a, 0xff, 0xff]),
        Bytes::from_static(&[0, 0]),
        Bytes::new(),
    ] {
        let ended = victim.client.send(SOLVE, &[], bad.clone()).await.ended().await;
        assert_refused(&ended, 3, "bad_message");
    }
    assert_eq!(victim.rejected("bad_message"), 6.0);
    assert_eq!(victim.daemon.seen("Control/Solve").len(), 1, "no daemon saw any of it");
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_above_sixteen_mebibytes_is_refused_and_one_below_passes() {
    let victim = Victim::start().await;
    let before = victim.proxy.process.memory_kib("VmRSS");
    let refused = (0..20).map(async |_| {
        let announced = framed(0, (16 << 20) + 1, &[0; 1000]);
        victim.client.send(SOLVE, &[], announced).await.ended().await
    });
    for ended in futures_util::future::join_all(refused).await {
        assert_refused(&ended, 8, "message_too_large");
    }
    // The announced messages have 320 MiB together.
    let grown = victim.proxy.process.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 64 << 10, "grew by {grown} KiB for messages that were never read");
    let large = SolveRequest {
        r#ref: "large".into(),
        session: "large".into(),
        frontend_attrs: vec![wire::control::Attr {
            key: "build-arg:X".into(),
            value: vec![b'x'; 15 << 20].into(),
        }],
        ..Default::default()
    };
    let mut call = victim.client.send(SOLVE, &[], wire::encode(&large)).await;
    eventually("the large Solve arrives", Duration::from_secs(10), || {
        (victim.daemon.seen("Control/Solve").len() == 2).then_some(())
    });
    call.upload.send_reset(Reason::CANCEL);
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_values_in_a_solve_are_no_error() {
    let victim = Victim::start().await;
    victim.daemon.finish();
    let attr = |key: &[u8], value: &[u8]| wire::control::Attr {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
    };
    let request = SolveRequest {
        r#ref: b"\xff\xfe".to_vec().into(),
        frontend_attrs: vec![
            attr(b"vcs:source", b"\xff://\xfe@:#"),
            attr(b"context", &vec![b'/'; 1 << 20]),
            attr(b"local-sessionid:x", b""),
            attr(b"", b""),
        ],
        ..Default::default()
    };
    let call = victim.client.send(SOLVE, &[], wire::encode(&request)).await;
    assert_eq!(call.ended().await.code(), Some(0));
    let no_ids = victim.client.send(SOLVE, &[], framed(0, 0, &[])).await.ended().await;
    assert_eq!(no_ids.code(), Some(0), "a daemon judges what is missing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_session_of_the_same_id_cannot_take_over_the_first() {
    let victim = Victim::start().await;
    let session = victim.client.session("bystander").await.answered().await.expect("headers");
    let thief = RawClient::connect(&victim.proxy.socket()).await;
    let ended = thief.session("bystander").await.ended().await;
    assert_refused(&ended, 6, "session_open");
    assert_eq!(victim.daemon.seen("Control/Session").len(), 1);
    drop(session);
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_that_is_sent_twice_goes_to_the_same_daemon_for_its_error() {
    let fleet = FakeDaemon::fleet(3).await;
    let backend = |builder: Builder, daemon: &FakeDaemon| builder.backend(&daemon.backend());
    let proxy = fleet.iter().fold(Builder::default(), backend).policy("random").start();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut calls = vec![client.solve("twice", "s").await];
    eventually("the first arrives", Duration::from_secs(5), || {
        fleet.iter().any(|daemon| daemon.seen("Control/Solve").len() == 1).then_some(())
    });
    for _ in 0..5 {
        // Either with its session from elsewhere, or on its own connection: both identify the same build.
        let other = RawClient::connect(&proxy.socket()).await;
        calls.push(other.solve("twice", "s").await);
        calls.push(client.solve("twice", "other").await);
    }
    eventually("all arrive at one daemon", Duration::from_secs(5), || {
        fleet.iter().any(|daemon| daemon.seen("Control/Solve").len() == 11).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_above_the_limit_is_refused() {
    let victim = Victim::start().await;
    let large = "x".repeat(100 << 10);
    let empty = framed(0, 0, &[]);
    let path = "/moby.buildkit.v1.Control/Info";
    let ended = victim.client.send(path, &[("x-large", &large)], empty.clone()).await.ended().await;
    assert_refused(&ended, 8, "limit");
    // Above the limit of the HTTP/2 library, the library answers 431.
    let huge = "x".repeat(300 << 10);
    let refused = victim.client.send(path, &[("x-huge", &huge)], empty).await.ended().await;
    // The proxy's own probes ask for Info too, whenever a probe is due.
    let passed_on = |seen: &Seen| seen.headers.contains_key("x-huge");
    assert!(
        refused.code().is_none() && !victim.daemon.seen("Control/Info").iter().any(passed_on),
        "{refused:?}"
    );
    assert!(victim.rejected("limit") >= 1.0);
    let other = Victim { client: RawClient::connect(&victim.proxy.socket()).await, ..victim };
    other.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_too_long_do_not_hurt() {
    let victim = Victim::start().await;
    let id = "x".repeat(10_000);
    // The proxy takes this for no id, so the daemon answers.
    let bridge = victim.client.bridge("Ping", &id).await.ended().await;
    assert_eq!(bridge.code(), Some(0));
    let mut session = victim.client.session(&id).await;
    let _ = session.upload.send_data(Bytes::new(), true);
    assert_eq!(session.ended().await.code(), Some(0));
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_http2_ends_its_connection_alone() {
    let victim = Victim::start().await;
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let handshake = [PREFACE, &settings].concat();
    let with = |frame: &[u8]| [&handshake[..], frame].concat();
    for bad in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nlonger than a preface".to_vec(),
        vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03, 0, 0, 0, 0, 0],
        // DATA on stream 0, HEADERS with garbage, a frame above the limit, SETTINGS of odd length
        with(&[0, 0, 1, 0, 0, 0, 0, 0, 0, 7]),
        with(&[0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
        with(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]),
        with(&[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]),
        // WINDOW_UPDATE of 0, a CONTINUATION of nothing
        with(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with(&[0, 0, 1, 9, 0, 0, 0, 0, 1, 0]),
    ] {
        let mut stream = TcpStream::connect(victim.proxy.socket()).expect("accepted");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        stream.write_all(&bad).expect("sent");
        let mut answer = Vec::new();
        // The proxy closes the connection; a reset counts as closing.
        let closed = match stream.read_to_end(&mut answer) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(closed, "still open after {bad:02x?}");
    }
    eventually("they are counted", Duration::from_secs(5), || {
        let errors = victim.proxy.metric("buildkit_lb_connection_errors_total", &[]);
        (errors >= 7.0).then_some(())
    });
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_nothing_is_dropped_and_a_health_check_is_no_error() {
    let victim = Victim::start().await;
    for _ in 0..20 {
        drop(TcpStream::connect(victim.proxy.socket()).expect("accepted"));
    }
    let mut silent = TcpStream::connect(victim.proxy.socket()).expect("accepted");
    let mut half = TcpStream::connect(victim.proxy.socket()).expect("accepted");
    half.write_all(&PREFACE[..10]).expect("sent");
    for stream in [&mut silent, &mut half] {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
        let closed = match stream.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => stream.read_to_end(&mut Vec::new()).is_ok(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(closed, "a silent client keeps its place");
    }
    eventually("the two are counted", Duration::from_secs(5), || {
        let errors = |reason| victim.proxy.metric("buildkit_lb_connection_errors_total", reason);
        (errors(&["handshake_timeout"]) == 2.0 && errors(&[]) == 2.0).then_some(())
    });
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_streams_that_are_reset_at_once_costs_little() {
    let victim = Victim::start().await;
    let before = victim.proxy.process.memory_kib("VmRSS");
    let flooder = RawClient::connect(&victim.proxy.socket()).await;
    let mut sent = 0;
    while sent < 20_000 {
        let id = format!("flood{sent}");
        let headers = [("x-docker-expose-session-uuid", id.as_str())];
        let path = "/moby.buildkit.v1.Control/Session";
        // The proxy may close the connection because of the flood (ENHANCE_YOUR_CALM).
        let Some(mut call) = flooder.try_call(path, &headers).await else { break };
        call.upload.send_reset(Reason::CANCEL);
        sent += 1;
    }
    assert!(sent >= 500, "bursts of cancels are normal, {sent} were too few");
    let ping = victim.client.bridge("Ping", "bystander").await.ended();
    let in_time = tokio::time::timeout(Duration::from_secs(20), ping).await;
    assert_eq!(in_time.expect("served meanwhile").code(), Some(0));
    eventually("nothing stays parked", Duration::from_secs(5), || {
        (victim.proxy.metric("buildkit_lb_parked_streams", &[]) == 0.0).then_some(())
    });
    // Each open stream takes some KB, but only while it is open.
    eventually("the memory is the system's again", Duration::from_secs(20), || {
        let grown = victim.proxy.process.memory_kib("VmRSS").saturating_sub(before);
        (grown < 32 << 10).then_some(())
    });
    let peak = victim.proxy.process.memory_kib("VmHWM").saturating_sub(before);
    assert!(peak < 256 << 10, "took {peak} KiB");
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_solve_is_read_and_passed_on_as_it_came() {
    let victim = Victim::start().await;
    victim.daemon.finish();
    let request =
        SolveRequest { r#ref: "zipped".into(), session: "z".into(), ..Default::default() };
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&request.encode_to_vec()).expect("written");
    let zipped = encoder.finish().expect("written");
    let message = framed(1, u32::try_from(zipped.len()).expect("small"), &zipped);
    let headers = [("grpc-encoding", "gzip")];
    let ended = victim.client.send(SOLVE, &headers, message.clone()).await.ended().await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let seen = victim.daemon.seen("Control/Solve").pop().expect("it arrived");
    assert_eq!(seen.message, message);
    assert_eq!(seen.headers["grpc-encoding"], "gzip");
    let session = SessionId::new(b"z", None).expect("an id").to_string();
    assert_eq!(victim.proxy.build("zipped")["session"], session.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn solves_that_are_cancelled_at_once_leave_nothing() {
    let victim = Victim::start().await;
    for round in 0..20 {
        let client = RawClient::connect(&victim.proxy.socket()).await;
        let mut calls = Vec::new();
        for number in 0..50 {
            let id = format!("{round}-{number}");
            calls.push(client.solve(&id, &id).await);
            calls.push(client.session(&id).await);
        }
        for call in &mut calls {
            call.upload.send_reset(Reason::CANCEL);
        }
    }
    eventually("only the bystander is left", Duration::from_secs(5), || {
        let gauge = |name| victim.proxy.metric(name, &[]);
        (gauge("buildkit_lb_builds_active") == 1.0
            && gauge("buildkit_lb_sessions_active") == 0.0
            && gauge("buildkit_lb_parked_streams") == 0.0)
            .then_some(())
    });
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_small_frames_take_no_memory() {
    let victim = Victim::start().await;
    let before = victim.proxy.process.memory_kib("VmRSS");
    let block = call_block(
        "/moby.buildkit.v1.Control/Session",
        &[("x-docker-expose-session-uuid", "bystander")],
    );
    let open = Frame::new(HEADERS, END_HEADERS, 1, block.clone()).encode();
    let started = Frame::new(HEADERS, 0, 1, block).encode();
    let floods = [
        ("PING", vec![], Frame::new(PING, 0, 0, vec![0; 8])),
        ("SETTINGS", vec![], Frame::new(SETTINGS, 0, 0, vec![0, 3, 0, 0, 0, 9])),
        ("WINDOW_UPDATE", vec![], Frame::new(WINDOW_UPDATE, 0, 0, vec![0, 0, 0, 1])),
        ("empty DATA", open, Frame::new(DATA, 0, 1, Bytes::new())),
        ("CONTINUATION", started, Frame::new(CONTINUATION, 0, 1, vec![0, 1, b'a', 1, b'b'])),
    ];
    for (what, first, frame) in floods {
        let mut flooder = RawFrames::handshaken(&victim.proxy.socket()).await;
        flooder.write(&first).await;
        let many = frame.encode().repeat(1000);
        // The flooder reads nothing. The proxy may close its connection or stop reading from it.
        let flood = async {
            for _ in 0..200 {
                flooder.write(&many).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), flood).await;
        let ping = victim.client.bridge("Ping", "bystander").await.ended();
        let in_time = tokio::time::timeout(Duration::from_secs(20), ping).await;
        assert_eq!(in_time.expect("served meanwhile").code(), Some(0), "{what}");
        let grown = victim.proxy.process.memory_kib("VmRSS").saturating_sub(before);
        assert!(grown < 32 << 10, "{what}: grew by {grown} KiB");
    }
    victim.unharmed().await;
}

/// The frames that a client may send for a build.
fn conversation() -> Vec<Vec<u8>> {
    let session = [("x-docker-expose-session-uuid", "fuzzed")];
    let bridge = [("buildkit-controlapi-buildid", "fuzzed"), ("grpc-timeout", "15S")];
    let trace = [("traceparent", "00-0000000000000000000000000000000f-0000000000000001-01")];
    let solve = SolveRequest {
        r#ref: "fuzzed".into(),
        session: "fuzzed".into(),
        frontend_attrs: vec![wire::control::Attr {
            key: "context".into(),
            value: "https://user@example.test:1/team/app.git#main:sub".into(),
        }],
        ..Default::default()
    };
    let by_ref = framed(0, 8, b"\x0a\x06fuzzed");
    let control = "/moby.buildkit.v1.Control/";
    type Metadata<'a> = &'a [(&'a str, &'a str)];
    let calls: [(String, Metadata<'_>, Bytes); 9] = [
        (format!("{control}ListWorkers"), &[], framed(0, 0, &[])),
        (format!("{control}Session"), &session, framed(0, 4, b"\x0a\x02hi")),
        (format!("{control}Solve"), &trace, wire::encode(&solve)),
        (format!("{control}Status"), &[], by_ref.clone()),
        ("/moby.buildkit.v1.frontend.LLBBridge/Ping".into(), &bridge, framed(0, 0, &[])),
        (format!("{control}ListenBuildHistory"), &[], framed(0, 2, &[0x18, 1])),
        (format!("{control}UpdateBuildHistory"), &[], by_ref),
        (format!("{control}DiskUsage"), &[], framed(0, 0, &[])),
        ("/containerd.services.content.v1.Content/Info".into(), &[], framed(0, 3, b"\x0a\x01x")),
    ];
    let mut frames = vec![Frame::new(SETTINGS, 0, 0, vec![0, 4, 0, 16, 0, 0]).encode()];
    for (number, (path, headers, message)) in (0..).zip(calls) {
        let stream = number * 2 + 1;
        let block = call_block(&path, headers);
        frames.push(Frame::new(HEADERS, END_HEADERS, stream, block).encode());
        let (first, second) = message.split_at(message.len() / 2);
        frames.push(Frame::new(DATA, 0, stream, first.to_vec()).encode());
        frames.push(Frame::new(DATA, END_STREAM, stream, second.to_vec()).encode());
    }
    frames.push(Frame::new(WINDOW_UPDATE, 0, 0, vec![0, 0, 1, 0]).encode());
    frames.push(Frame::new(PING, 0, 0, vec![1; 8]).encode());
    frames.push(Frame::reset(3, Reason::CANCEL).encode());
    frames.push(Frame::go_away(0, Reason::NO_ERROR).encode());
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_with_faults_in_them_harm_nobody() {
    const ROUNDS: u64 = 3000;
    let victim = Victim::start().await;
    let conversation = conversation();
    let before = victim.proxy.process.memory_kib("VmRSS");
    let rounds = (0..16).map(|worker| {
        let (conversation, socket) = (&conversation, victim.proxy.socket());
        async move {
            for round in (worker..ROUNDS).step_by(16) {
                let mut rng = StdRng::seed_from_u64(round);
                let bytes = mutated(conversation, &mut rng).concat();
                let mut client = RawFrames::connect(&socket).await;
                client.write(PREFACE).await;
                client.write(&bytes).await;
                client.rest(Duration::from_millis(10)).await;
            }
        }
    });
    futures_util::future::join_all(rounds).await;
    assert!(!victim.proxy.process.log().contains("panicked"));
    eventually("nothing is left of them", Duration::from_secs(10), || {
        let gauge = |name| victim.proxy.metric(name, &[]);
        // The bystander's connection, and its Solve.
        (gauge("buildkit_lb_connections_active") == 1.0
            && gauge("buildkit_lb_builds_active") == 1.0
            && gauge("buildkit_lb_parked_streams") == 0.0)
            .then_some(())
    });
    let grown = victim.proxy.process.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 48 << 10, "grew by {grown} KiB");
    assert!(victim.proxy.metric("buildkit_lb_connection_errors_total", &[]) > 100.0);
    victim.unharmed().await;
}
