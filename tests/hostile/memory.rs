//! What a client sends takes no more memory than its length, and all clients together take no more than the budget.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use buildkit_lb::wire::{
    self,
    control::{RefRequest, SolveRequest},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use h2::SendStream;

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        eventually,
        fake_daemon::{FakeDaemon, send},
        frames::{END_HEADERS, Frame, HEADERS, RawFrames, call_block},
        proxy::{Builder, Proxy},
        raw_client::{Call, RawClient},
    },
};

const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";
const STATUS: &str = "/moby.buildkit.v1.Control/Status";
const PING: &str = "/moby.buildkit.v1.frontend.LLBBridge/Ping";

/// The smallest budget, so that a small attack exceeds it.
const BUDGET_KIB: u64 = 32 << 10;

/// The memory that a proxy under attack may take in addition to the budget and the windows, for threads, connections
/// and streams.
const BESIDE_KIB: u64 = 96 << 10;

/// The bytes that a client may have sent on one connection before a busy proxy looks at them: the connection's window.
const WINDOW_KIB: u64 = 1 << 10;

fn framed(flag: u8, len: usize, payload: &[u8]) -> Bytes {
    let len = u32::try_from(len).expect("a message's length").to_be_bytes();
    [&[flag], &len[..], payload].concat().into()
}

fn gzip(payload: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(payload).expect("written");
    let packed = encoder.finish().expect("written");
    framed(1, packed.len(), &packed)
}

fn small_budget(daemon: &Buildkitd) -> Proxy {
    let proxy = Proxy::in_front_of([daemon]).args(&["--memory-budget", "32MiB"]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    proxy
}

fn held(proxy: &Proxy) -> f64 {
    proxy.metric("buildkit_lb_held_bytes", &[])
}

fn refused(proxy: &Proxy) -> f64 {
    proxy.metric("buildkit_lb_rejected_total", &["\"memory\""])
}

/// Runs `attack` during a build of somebody else. Returns by how many KiB the proxy's memory grew at most.
async fn growth<T>(proxy: &Proxy, attack: impl Future<Output = T>) -> (T, u64) {
    let before = proxy.process.memory_kib("VmRSS");
    let (done, ()) = tokio::join!(attack, bystander::builds(proxy));
    let grown = proxy.process.memory_kib("VmHWM").saturating_sub(before);
    eprintln!("grew by {grown} KiB");
    (done, grown)
}

/// The growth that is allowed to a proxy with the smallest budget under an attack on so many connections.
fn most_kib(connections: u64) -> u64 {
    BUDGET_KIB + BESIDE_KIB + connections * WINDOW_KIB
}

/// Waits until the proxy holds nothing of clients that are gone.
fn until_nothing_is_held(proxy: &Proxy) {
    eventually("nothing is held", Duration::from_secs(20), || (held(proxy) == 0.0).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_solve_that_unpacks_to_millions_of_options_takes_little_memory() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    // Eight million empty options, and a ref, so that the message counts as a build.
    let bomb = |number: u8| {
        let bomb = gzip(&[&[0x0a, 1, b'a' + number][..], &[0x3a, 0x00].repeat(8_000_000)].concat());
        assert!(bomb.len() < 20_000, "{} bytes on the wire", bomb.len());
        bomb
    };
    let bombs = [0, 1, 2, 3].map(bomb);
    let attack = async {
        let mut calls = Vec::new();
        for bomb in bombs {
            let client = RawClient::connect(&proxy.socket()).await;
            let headers = [("grpc-encoding", "gzip")];
            calls.push((client.send(SOLVE, &headers, bomb).await, client));
        }
        eventually("all are read", Duration::from_secs(60), || {
            (proxy.metric("buildkit_lb_route_decisions_total", &[]) >= 4.0).then_some(())
        });
    };
    let ((), grown) = growth(&proxy, attack).await;
    // A decoded message took half a gigabyte; two unpacked messages at once take 32 MiB.
    assert!(grown < 96 << 10, "grew by {grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn solves_that_never_end_take_no_more_than_the_budget() {
    let daemon = Buildkitd::start("only");
    let proxy = small_budget(&daemon);
    let part = framed(0, 64 << 10, &vec![0; 60 << 10]);
    let attack = async {
        let mut calls: Vec<(RawClient, Vec<Call>)> = Vec::new();
        for _ in 0..60 {
            let client = RawClient::connect(&proxy.socket()).await;
            let mut open = Vec::new();
            for _ in 0..100 {
                let mut call = client.call(SOLVE, &[]).await;
                let _ = call.upload.send_data(part.clone(), false);
                open.push(call);
            }
            calls.push((client, open));
        }
        eventually("some are refused", Duration::from_secs(30), || {
            (refused(&proxy) >= 1000.0).then_some(())
        });
        calls
    };
    let (calls, grown) = growth(&proxy, attack).await;
    assert!(held(&proxy) <= (BUDGET_KIB << 10) as f64);
    assert!(grown < most_kib(60), "grew by {grown} KiB for 360 MB");
    drop(calls);
    until_nothing_is_held(&proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_takes_nothing() {
    let daemon = Buildkitd::start("only");
    let proxy = small_budget(&daemon);
    let announcing = RawClient::connect(&proxy.socket()).await;
    let mut calls = Vec::new();
    for _ in 0..62 {
        let mut call = announcing.call(SOLVE, &[]).await;
        let _ = send(&mut call.upload, framed(0, 16 << 20, &[])).await;
        calls.push(call);
    }
    eventually("all have come", Duration::from_secs(10), || {
        (held(&proxy) == 62.0 * 5.0).then_some(())
    });
    let client = RawClient::connect(&proxy.socket()).await;
    let large = SolveRequest {
        r#ref: "large".into(),
        definition: vec![0; 8 << 20].into(),
        ..Default::default()
    };
    let _large = client.send(SOLVE, &[], wire::encode(&large)).await;
    eventually("the large one is placed", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_route_decisions_total", &[]) == 1.0).then_some(())
    });
    bystander::builds(&proxy).await;
    assert_eq!(refused(&proxy), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_a_table_makes_long_is_counted_as_what_it_becomes() {
    let daemon = Buildkitd::start("only");
    let proxy = small_budget(&daemon);
    // One header that goes into the table of HPACK, and 1500 times the byte that refers to it.
    let named = [&[0x40, 1][..], b"x", &[1], b"y"].concat();
    let attack = async {
        let mut clients = Vec::new();
        for _ in 0..10 {
            let mut client = RawFrames::handshaken(&proxy.socket()).await;
            let mut frames = Vec::new();
            for number in 0..500 {
                let build = format!("nobody-{number}");
                let mut block = call_block(PING, &[("buildkit-controlapi-buildid", &build)]);
                if number == 0 {
                    block.extend(&named);
                }
                block.extend([0xbe; 1500]);
                let stream = 2 * number + 1;
                frames.extend(Frame::new(HEADERS, END_HEADERS, stream, block).encode());
            }
            client.write(&frames).await;
            clients.push(client);
        }
        eventually("some are refused", Duration::from_secs(30), || {
            (refused(&proxy) >= 1000.0).then_some(())
        });
        clients
    };
    let (clients, grown) = growth(&proxy, attack).await;
    assert!(grown < most_kib(10), "grew by {grown} KiB for 8 MB");
    drop(clients);
    until_nothing_is_held(&proxy);
}

/// Opens calls of `path` for builds that never come, and sends a MiB after the message on each.
async fn waiting_calls(proxy: &Proxy, path: &str, message: impl Fn(&str) -> Bytes) {
    let attack = async {
        let mut calls = Vec::new();
        for connection in 0..20 {
            let client = RawClient::connect(&proxy.socket()).await;
            let mut open = Vec::new();
            for number in 0..16 {
                let build = format!("nobody-{connection}-{number}");
                let headers = [("buildkit-controlapi-buildid", &*build)];
                let mut call = client.call(path, &headers).await;
                let _ = call.upload.send_data(message(&build), false);
                let _ = call.upload.send_data(framed(0, 1 << 20, &vec![0; 1 << 20]), false);
                open.push(call);
            }
            calls.push((client, open));
        }
        eventually("some are refused", Duration::from_secs(30), || {
            (refused(proxy) >= 200.0).then_some(())
        });
        calls
    };
    let (calls, grown) = growth(proxy, attack).await;
    assert!(grown < most_kib(20), "grew by {grown} KiB for 320 MiB");
    drop(calls);
    until_nothing_is_held(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_wait_for_their_build_take_no_more_than_the_budget() {
    let daemon = Buildkitd::start("only");
    let proxy = small_budget(&daemon);
    waiting_calls(&proxy, PING, |_build| Bytes::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_message_that_waits_takes_no_more_than_the_budget() {
    let daemon = Buildkitd::start("only");
    let proxy = small_budget(&daemon);
    let named =
        |build: &str| wire::encode(&RefRequest { r#ref: Bytes::copy_from_slice(build.as_bytes()) });
    waiting_calls(&proxy, STATUS, named).await;
}

/// Sends without end, within the windows, and counts the bytes that were sent.
fn pour(mut upload: SendStream<Bytes>, sent: &Arc<AtomicUsize>) {
    let sent = Arc::clone(sent);
    tokio::spawn(async move {
        let piece = Bytes::from(vec![0; 16 << 10]);
        while send(&mut upload, piece.clone()).await.is_ok() {
            sent.fetch_add(piece.len(), Ordering::Relaxed);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_daemon_reads_stays_with_the_client_until_something_is_bound() {
    const CONNECTIONS: usize = 10;
    const CALLS: usize = 16;
    let daemon = FakeDaemon::start("only").await;
    // gRPC does the same with all that follows the only message of a request.
    daemon.on("Health/Watch", |stream| async move {
        let _unread = stream;
        std::future::pending::<()>().await;
    });
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let sent = Arc::default();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = RawClient::connect(&proxy.socket()).await;
        for _ in 0..CALLS {
            let call = client.call("/grpc.health.v1.Health/Watch", &[]).await;
            let (upload, response) = call.into_parts();
            pour(upload, &sent);
            open.push(response);
        }
    }
    let mut counts = Vec::new();
    eventually("no more can be sent", Duration::from_secs(30), || {
        counts.push(sent.load(Ordering::Relaxed));
        let last = counts.rchunks(20).next().filter(|last| last.len() == 20)?;
        (last[0] > 0 && last.iter().all(|count| *count == last[0])).then_some(())
    });
    let most = CONNECTIONS << 20;
    // What the daemon's windows took, and two pieces of each call that are on their way.
    let beyond = CONNECTIONS * CALLS * (192 << 10);
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent <= most + beyond, "{} KiB", sent >> 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_flood_has_taken_is_given_back() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).args(&["--memory-budget", "512MiB"]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let before = proxy.process.memory_kib("VmRSS");
    // Small pieces that stay lie between the large ones, as the pieces of other clients do.
    let mut stay = Vec::new();
    for round in 0..3 {
        let mut flood = Vec::new();
        for number in 0..40 {
            let client = RawClient::connect(&proxy.socket()).await;
            for len in [3 << 20, 700 << 10, 90 << 10, 20 << 10] {
                let part = framed(0, len + 1, &vec![0; len]);
                let mut call = client.call(SOLVE, &[]).await;
                send(&mut call.upload, part).await.expect("sent");
                flood.push(call);
            }
            let waits = client.bridge("Ping", &format!("nobody-{round}-{number}")).await;
            stay.push((client, waits));
        }
        eventually("all is held", Duration::from_secs(30), || {
            (held(&proxy) > f64::from(40 * (3 << 20))).then_some(())
        });
        bystander::builds(&proxy).await;
        drop(flood);
        until_nothing_is_held(&proxy);
    }
    drop(stay);
    // A thread gives memory back when it is at work.
    let mut kept = u64::MAX;
    for _build in 0..20 {
        bystander::builds(&proxy).await;
        kept = proxy.process.memory_kib("VmRSS").saturating_sub(before);
        eprintln!("{} MiB are kept", kept >> 10);
        if kept < 48 << 10 {
            break;
        }
    }
    assert!(kept < 48 << 10, "{kept} KiB");
    let peak = proxy.process.memory_kib("VmHWM").saturating_sub(before);
    assert!(peak > 120 << 10, "the flood took {peak} KiB only");
}
