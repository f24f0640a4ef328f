//! A call that its client ends counts as nobody's fault, whatever frames end it.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use rand::{Rng, RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        eventually,
        fake_daemon::{FakeDaemon, send},
        frames::{
            DATA, END_HEADERS, END_STREAM, Frame, HEADERS, RST_STREAM, RawFrames, WINDOW_UPDATE,
            call_block, mutated,
        },
        proxy::{Builder, Proxy},
        raw_client::RawClient,
    },
};

const EMPTY: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);
const WRITE: &str = "/containerd.services.content.v1.Content/Write";
const READ: &str = "/containerd.services.content.v1.Content/Read";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const EXEC: &str = "/moby.buildkit.v1.frontend.LLBBridge/ExecProcess";

/// The number of counted faults of daemons, of any reason.
fn faults(proxy: &Proxy) -> f64 {
    proxy.metric("buildkit_lb_upstream_errors_total", &[])
}

/// Waits until the proxy serves no more than `count` clients.
fn until_clients(proxy: &Proxy, count: f64) {
    eventually("the clients are gone", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == count).then_some(())
    });
}

/// Opens a call and sends one message, and leaves the call open.
async fn open(client: &mut RawFrames, stream: u32, path: &str, headers: &[(&str, &str)]) {
    let block = call_block(path, headers);
    client.send(&Frame::new(HEADERS, END_HEADERS, stream, block)).await;
    client.send(&Frame::new(DATA, 0, stream, EMPTY)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_cancels_its_calls_ejects_no_daemon() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let builder = RawClient::connect(&proxy.socket()).await;
    let _solve = builder.solve("r", "s").await;
    let build = [("buildkit-controlapi-buildid", "r")];
    let too_long = [("content-length", "99")];
    let attack = async {
        for _ in 0..10 {
            let mut client = RawFrames::handshaken(&proxy.socket()).await;
            for (stream, (path, headers)) in
                [(WRITE, &[][..]), (WATCH, &[][..]), (EXEC, &build[..])].into_iter().enumerate()
            {
                let stream = u32::try_from(stream).expect("few") * 2 + 1;
                open(&mut client, stream, path, headers).await;
                client.send(&Frame::reset(stream, Reason::CANCEL)).await;
            }
            let block = call_block(WRITE, &too_long);
            client.send(&Frame::new(HEADERS, END_HEADERS, 7, block)).await;
            client.send(&Frame::new(DATA, END_STREAM, 7, EMPTY)).await;
            // These calls are still answered when their connection ends.
            client.send(&Frame::new(HEADERS, END_HEADERS, 9, call_block(WATCH, &[]))).await;
            client.send(&Frame::new(DATA, END_STREAM, 9, EMPTY)).await;
            client.until(|frame| frame.stream == 9 && frame.kind == HEADERS).await;
        }
    };
    tokio::join!(attack, bystander::builds(&proxy));
    until_clients(&proxy, 1.0);
    assert_eq!(faults(&proxy), 0.0, "{:?}", proxy.records("backend ejected"));
    bystander::builds(&proxy).await;
}

/// A daemon that behaves in every way: answers at once or never, in part or without end.
async fn versatile() -> FakeDaemon {
    let daemon = FakeDaemon::start("only").await;
    daemon.on("Content/Write", |mut stream| async move {
        let _out = stream.try_headers();
        stream.read().await;
    });
    daemon.on("Health/Watch", |mut stream| async move {
        let Some(mut out) = stream.try_headers() else { return };
        while send(&mut out, EMPTY).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    daemon.on("Content/Read", |mut stream| async move {
        stream.read().await;
        let Some(mut out) = stream.try_headers() else { return };
        while send(&mut out, Bytes::from(vec![7; 32 << 10])).await.is_ok() {}
    });
    daemon.on("Content/Abort", |mut stream| async move {
        let _ = std::future::poll_fn(|cx| stream.respond.poll_reset(cx)).await;
    });
    daemon
}

/// Random frames of a client.
fn frames(rng: &mut impl Rng) -> Vec<Vec<u8>> {
    const PATHS: [&str; 12] = [
        WRITE,
        READ,
        WATCH,
        EXEC,
        "/containerd.services.content.v1.Content/Abort",
        "/containerd.services.content.v1.Content/List",
        "/moby.buildkit.v1.Control/Solve",
        "/moby.buildkit.v1.Control/Session",
        "/moby.buildkit.v1.Control/Status",
        "/moby.buildkit.v1.Control/ListWorkers",
        "/moby.buildkit.v1.Control/ListenBuildHistory",
        "/nobody.Knows/It",
    ];
    let mut frames = Vec::new();
    let mut last = 1;
    for _ in 0..rng.random_range(4..24) {
        let stream = rng.random_range(0..=last / 2) * 2 + 1;
        let flags = if rng.random_ratio(1, 3) { END_STREAM } else { 0 };
        frames.push(
            match rng.random_range(0..8) {
                0..4 => {
                    let mut headers = vec![("x-docker-expose-session-uuid", "bystander-not")];
                    if rng.random_ratio(1, 4) {
                        headers.push(("content-length", "3"));
                    }
                    if rng.random_ratio(1, 2) {
                        headers.push(("buildkit-controlapi-buildid", "bystander"));
                    }
                    last += 2;
                    let path = PATHS[rng.random_range(0..PATHS.len())];
                    Frame::new(HEADERS, END_HEADERS | flags, last, call_block(path, &headers))
                }
                4 | 5 => Frame::new(DATA, flags, stream, EMPTY),
                6 => Frame::new(
                    RST_STREAM,
                    0,
                    stream,
                    rng.random_range(0..15_u32).to_be_bytes().to_vec(),
                ),
                _ => Frame::new(WINDOW_UPDATE, 0, stream, vec![0, 1, 0, 0]),
            }
            .encode(),
        );
    }
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn no_frames_of_a_client_are_a_daemons_fault() {
    const ROUNDS: u64 = 300;
    const AT_ONCE: u64 = 6;
    let daemon = versatile().await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let victim = RawClient::connect(&proxy.socket()).await;
    let solve = victim.solve("bystander", "bystander").await;
    assert_eq!(victim.bridge("Ping", "bystander").await.ended().await.code(), Some(0));
    let attackers = (0..AT_ONCE).map(|attacker| {
        let proxy = &proxy;
        async move {
            for round in (attacker..ROUNDS).step_by(AT_ONCE as usize) {
                let mut rng = StdRng::seed_from_u64(round);
                let mut sent = frames(&mut rng);
                if rng.random_ratio(1, 4) {
                    sent = mutated(&sent, &mut rng);
                }
                let mut client = RawFrames::handshaken(&proxy.socket()).await;
                for piece in sent.chunks(rng.random_range(1..8)) {
                    client.write(&piece.concat()).await;
                    tokio::task::yield_now().await;
                }
                if rng.random() {
                    client.rest(Duration::from_millis(20)).await;
                }
            }
        }
    });
    futures_util::future::join_all(attackers).await;
    until_clients(&proxy, 1.0);
    assert_eq!(victim.bridge("Ping", "bystander").await.ended().await.code(), Some(0));
    assert_eq!(faults(&proxy), 0.0, "{:?}", proxy.records("backend ejected"));
    daemon.finish();
    assert_eq!(solve.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_no_builds_count_as_none_and_hold_up_no_drain() {
    let daemon = versatile().await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let client = RawClient::connect(&proxy.socket()).await;
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(client.call(WRITE, &[]).await.answered().await.expect("headers"));
    }
    assert_eq!(proxy.metric("buildkit_lb_builds_active", &[]), 0.0);
    let drain = "/backends/only/drain?timeout=20s";
    let (code, text) = tokio::task::block_in_place(|| proxy.control("POST", drain));
    assert_eq!(code, 200, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_their_client_no_longer_wants_do_not_end_the_connection_they_share() {
    const CALLS: usize = 3_000;
    let daemon = versatile().await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let client = RawClient::connect(&proxy.socket()).await;
    // So many calls at once go over the connection that all clients share.
    for _ in 0..CALLS / 10 {
        let mut calls = Vec::new();
        for _ in 0..10 {
            calls.push(client.send(READ, &[], EMPTY).await);
        }
        for call in calls {
            call.answered().await.expect("headers").upload.send_reset(Reason::CANCEL);
        }
    }
    let other = RawClient::connect(&proxy.socket()).await;
    assert_eq!(other.control("ListWorkers").await.ended().await.code(), Some(0));
    assert_eq!(faults(&proxy), 0.0, "{:?}", proxy.records("backend ejected"));
    let connections: std::collections::HashSet<_> =
        daemon.seen("Content/Read").iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len(), 1, "the connection was opened again");
}
