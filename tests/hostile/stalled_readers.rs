//! Answers that nobody reads take nothing from other clients.

use std::time::Duration;

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl, buildctl_build, succeed},
        fake_daemon::{FakeDaemon, send},
        frames::{
            DATA, END_HEADERS, END_STREAM, Frame, HEADERS, PREFACE, RawFrames, SETTINGS, call_block,
        },
        proxy::{Builder, Proxy},
        raw_client::RawClient,
    },
};

const EMPTY: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);
const READ: &str = "/containerd.services.content.v1.Content/Read";
const STATUS: &str = "/moby.buildkit.v1.Control/Status";

/// A client that never takes a byte of any answer.
pub(crate) async fn client_without_window(proxy: &Proxy) -> RawFrames {
    let mut client = RawFrames::connect(&proxy.socket()).await;
    client.write(PREFACE).await;
    // SETTINGS_INITIAL_WINDOW_SIZE is 0.
    client.send(&Frame::new(SETTINGS, 0, 0, vec![0, 4, 0, 0, 0, 0])).await;
    client
}

/// Makes `count` calls with one `message` each, and waits until all answers have begun.
pub(crate) async fn stall(client: &mut RawFrames, path: &str, message: &Bytes, count: u32) {
    let block = call_block(path, &[]);
    for call in 0..count {
        let stream = call * 2 + 1;
        client.send(&Frame::new(HEADERS, END_HEADERS, stream, block.clone())).await;
        client.send(&Frame::new(DATA, END_STREAM, stream, message.clone())).await;
    }
    for _ in 0..count {
        client.until(|frame| frame.kind == HEADERS).await;
    }
}

/// A gRPC message whose first field is `text`.
fn with_first(text: &str) -> Bytes {
    let len = u8::try_from(text.len()).expect("short");
    [&[0, 0, 0, 0, len + 2, 0x0a, len], text.as_bytes()].concat().into()
}

/// The digest of a large layer that a build through `proxy` leaves in its daemon.
fn large_blob(proxy: &Proxy) -> String {
    let context = Context::new("FROM scratch\nCOPY large /\n");
    let mut large = vec![0; 2 << 20];
    StdRng::seed_from_u64(1).fill_bytes(&mut large);
    context.write("large", large);
    let image = tempfile::tempdir().expect("a directory");
    let output = format!("type=oci,tar=false,dest={}", image.path().display());
    succeed(buildctl_build(&proxy.addr(), &context).args(["--output", &output]));
    let blobs = std::fs::read_dir(image.path().join("blobs/sha256")).expect("an image");
    let size = |blob: &std::fs::DirEntry| blob.metadata().expect("a file").len();
    let layer = blobs.map(|blob| blob.expect("a file")).max_by_key(size).expect("a layer");
    format!("sha256:{}", layer.file_name().to_string_lossy())
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_nobody_takes_hold_up_neither_questions_nor_builds() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let digest = large_blob(&proxy);
    let mut attacker = client_without_window(&proxy).await;
    stall(&mut attacker, READ, &with_first(&digest), 1_200).await;
    bystander::builds(&proxy).await;
    let addr = proxy.addr();
    let commands = move || {
        succeed(buildctl(&addr).args(["debug", "workers"]));
        succeed(buildctl(&addr).arg("du"));
        succeed(buildctl(&addr).args(["debug", "get", &digest]));
    };
    tokio::task::spawn_blocking(commands).await.expect("no panic");
    assert_eq!(proxy.metric("buildkit_lb_upstream_errors_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_a_build_and_reads_nothing_does_not_stop_it() {
    let daemon = FakeDaemon::start("only").await;
    daemon.on("Control/Status", |mut stream| async move {
        stream.read().await;
        let Some(mut out) = stream.try_headers() else { return };
        while send(&mut out, Bytes::from(vec![7; 32 << 10])).await.is_ok() {}
    });
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let victim = RawClient::connect(&proxy.socket()).await;
    let _solve = victim.solve("r", "s").await;
    let mut session = victim.session("s").await.answered().await.expect("headers");
    let mut attacker = client_without_window(&proxy).await;
    stall(&mut attacker, STATUS, &with_first("r"), 100).await;
    let own = daemon.seen("Control/Solve")[0].connection;
    // Not even a Solve of the same ref.
    let impostor = RawClient::connect(&proxy.socket()).await;
    let _solve = impostor.solve("r", "other").await;
    let _status = impostor.by_ref("Status", "r").await.answered().await;
    assert!(daemon.seen("Control/Status").iter().all(|status| status.connection != own));
    let sent = Bytes::from(vec![1; 4 << 20]);
    let echoed = async {
        let mut left = sent.len();
        while left > 0 {
            let data = session.body.data().await.expect("open").expect("data");
            let _ = session.body.flow_control().release_capacity(data.len());
            left -= data.len();
        }
    };
    let (_, sending) = tokio::join!(echoed, send(&mut session.upload, sent.clone()));
    sending.expect("the build goes on");
    assert_eq!(victim.bridge("Ping", "r").await.ended().await.code(), Some(0));
    // The build's own calls use the build's own link.
    let own_call = &daemon.seen("LLBBridge/Ping")[0];
    assert_eq!(own_call.connection, own);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_anew_is_known_by_its_trace() {
    let daemon = FakeDaemon::start("only").await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let trace = |number: u8| format!("00-{number:032x}-0000000000000001-01");
    let first = RawClient::connect(&proxy.socket()).await;
    let _solve = first.solve_with("r", "s", &[], &[("traceparent", &trace(1))]).await;
    let build = ("buildkit-controlapi-buildid", "r");
    for (number, own) in [(1, true), (2, false)] {
        let anew = RawClient::connect(&proxy.socket()).await;
        let headers = [build, ("traceparent", &trace(number))];
        let path = format!("/moby.buildkit.v1.frontend.LLBBridge/Call{number}");
        assert_eq!(anew.send(&path, &headers, EMPTY).await.ended().await.code(), Some(0));
        let connection = daemon.seen(&path)[0].connection;
        assert_eq!(connection == daemon.seen("Control/Solve")[0].connection, own, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stops_in_the_middle_is_asked_of_another_daemon() {
    let fleet = FakeDaemon::fleet(2).await;
    fleet[0].on("Control/ListWorkers", |mut stream| async move {
        stream.read().await;
        let mut out = stream.headers();
        let _ = send(&mut out, EMPTY).await;
        let _ = std::future::poll_fn(|cx| out.poll_reset(cx)).await;
    });
    let proxy =
        Builder::default().backend(&fleet[0].backend()).backend(&fleet[1].backend()).start();
    proxy.wait_ready(2, Duration::from_secs(10));
    let mut client = RawFrames::handshaken(&proxy.socket()).await;
    let block = call_block("/moby.buildkit.v1.Control/ListWorkers", &[]);
    let mut stream = 1;
    while fleet[0].seen("Control/ListWorkers").is_empty() {
        client.send(&Frame::new(HEADERS, END_HEADERS, stream, block.clone())).await;
        client.send(&Frame::new(DATA, END_STREAM, stream, EMPTY)).await;
        let of_stream = |frame: &Frame| frame.stream == stream;
        let ends = |frame: &Frame| of_stream(frame) && frame.has(END_STREAM);
        client.until(|frame| of_stream(frame) && frame.kind == DATA).await;
        assert_eq!(client.until(ends).await.map(|frame| frame.kind), Some(HEADERS));
        stream += 2;
    }
}
