//! Whatever a client sends: a clear error for it, a count, and no harm to anybody else's build.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use buildkit_lb::wire::{self, control::SolveRequest};
use bytes::Bytes;
use h2::Reason;
use support::{
    eventually,
    fake_daemon::FakeDaemon,
    proxy::{Builder, Proxy},
    raw_client::{Ended, RawClient},
};

const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A proxy with a build that runs while the test does its worst.
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
        assert_refused(&ended, 3, "bad_solve");
    }
    assert_eq!(victim.rejected("bad_solve"), 6.0);
    assert_eq!(victim.daemon.seen("Control/Solve").len(), 1, "no daemon saw any of it");
    victim.unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_above_sixteen_mebibytes_is_refused_and_one_below_passes() {
    let victim = Victim::start().await;
    let before = victim.proxy.process.memory_kib("VmRSS");
    for _ in 0..10 {
        let announced = framed(0, (16 << 20) + 1, &[0; 1000]);
        let ended = victim.client.send(SOLVE, &[], announced).await.ended().await;
        assert_refused(&ended, 8, "solve_too_large");
    }
    let grown = victim.proxy.process.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 8 << 10, "grew by {grown} KiB for messages that were never read");
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
async fn a_second_solve_of_a_live_ref_goes_to_the_same_daemon_for_its_error() {
    let fleet = FakeDaemon::fleet(3).await;
    let backend = |builder: Builder, daemon: &FakeDaemon| builder.backend(&daemon.backend());
    let proxy = fleet.iter().fold(Builder::default(), backend).policy("random").start();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut calls = vec![client.solve("twice", "s").await];
    for _ in 0..5 {
        let other = RawClient::connect(&proxy.socket()).await;
        calls.push(other.solve("twice", "other").await);
    }
    eventually("all arrive at one daemon", Duration::from_secs(5), || {
        fleet.iter().any(|daemon| daemon.seen("Control/Solve").len() == 6).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_above_the_limit_is_refused() {
    let victim = Victim::start().await;
    let large = "x".repeat(3 << 20);
    let empty = framed(0, 0, &[]);
    let path = "/moby.buildkit.v1.Control/Info";
    let ended = victim.client.send(path, &[("x-large", &large)], empty.clone()).await.ended().await;
    assert_refused(&ended, 8, "limit");
    // Above what the HTTP/2 library takes, its own answer is 431.
    let huge = "x".repeat(5 << 20);
    let refused = victim.client.send(path, &[("x-huge", &huge)], empty).await.ended().await;
    assert!(
        refused.code().is_none() && victim.daemon.seen("Control/Info").len() < 2,
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
    // No id of ours: the daemon answers.
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
    let greeted = [PREFACE, &settings].concat();
    let with = |frame: &[u8]| [&greeted[..], frame].concat();
    for bad in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore than a greeting".to_vec(),
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
        // The proxy closes; a reset is a close too.
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
        (errors(&["greeting_timeout"]) == 2.0 && errors(&[]) == 2.0).then_some(())
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
        // The connection may be closed for it (ENHANCE_YOUR_CALM).
        let Some(mut call) = flooder.try_call(path, &headers).await else { break };
        call.upload.send_reset(Reason::CANCEL);
        sent += 1;
    }
    assert!(sent >= 500, "bursts of cancels are normal, {sent} were too few");
    let ping = victim.client.bridge("Ping", "bystander").await.ended();
    let in_time = tokio::time::timeout(Duration::from_secs(2), ping).await;
    assert_eq!(in_time.expect("served meanwhile").code(), Some(0));
    eventually("nothing stays parked", Duration::from_secs(5), || {
        (victim.proxy.metric("buildkit_lb_parked_streams", &[]) == 0.0).then_some(())
    });
    let grown = victim.proxy.process.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 32 << 10, "grew by {grown} KiB");
    victim.unharmed().await;
}
