//! The connection to a daemon that a build has left, and the next build that gets it.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl},
    eventually,
    fake_daemon::{FakeDaemon, head, send, trailers},
    frames::{DATA, END_STREAM, GOAWAY, HEADERS, PING, Passed, Tap, Way},
    proxy::{Builder, Proxy},
    raw_client::{Call, RawClient},
};
use tokio::sync::Notify;

const WAIT: Duration = Duration::from_secs(60);

/// A daemon, a tap in front of it, and a proxy in front of the tap.
struct Tapped {
    daemon: FakeDaemon,
    up: Tap,
    proxy: Proxy,
}

impl Tapped {
    async fn start() -> Self {
        let daemon = FakeDaemon::start("only").await;
        let up = Tap::start(&daemon.socket()).await;
        let proxy = Builder::default().backend(&daemon.behind(&up.socket())).start();
        proxy.wait_ready(1, WAIT);
        Self { daemon, up, proxy }
    }

    /// A Solve that has reached the daemon, and the number of its connection.
    async fn solve(&self, build: &str) -> (Call, usize) {
        let solve = RawClient::connect(&self.proxy.socket()).await.solve(build, build).await;
        let connection = eventually("the Solve arrives", WAIT, || {
            let solves = self.daemon.seen("Control/Solve");
            solves.into_iter().find(|seen| seen.id() == build).map(|seen| seen.connection)
        });
        (solve, connection)
    }

    /// Builds until a build comes on one of these connections, and returns which. The proxy keeps a connection a moment
    /// after the client has the end of the build.
    async fn reused(&self, connections: &[usize]) -> usize {
        for number in 0..1_000 {
            let (solve, connection) = self.solve(&format!("again{number}")).await;
            assert_eq!(solve.ended().await.code(), Some(0));
            if connections.contains(&connection) {
                return connection;
            }
        }
        unreachable!("no build came on {connections:?}")
    }

    /// A build with a session, from its beginning to the end of both. Returns the number of its connection.
    async fn session(&self, build: &str) -> usize {
        let client = RawClient::connect(&self.proxy.socket()).await;
        let session = client.session(build).await;
        let solve = client.solve(build, build).await;
        assert_eq!(solve.ended().await.code(), Some(0));
        let mut session = session.answered().await.expect("a session");
        session.upload.send_data(Bytes::new(), true).expect("an end");
        assert_eq!(session.ended().await.code(), Some(0));
        let sessions = self.daemon.seen("Control/Session");
        sessions.last().expect("the daemon has seen the session").connection
    }

    /// Builds with sessions until one comes on a connection unasked, and returns which.
    async fn unasked(&self) -> usize {
        for number in 0..1_000 {
            let connection = self.session(&format!("session{number}")).await;
            if self.came_unasked(connection) {
                return connection;
            }
        }
        unreachable!("no build followed soon enough")
    }

    /// Whether a build has come on `connection` after no PING but the one that left with the end of a session.
    fn came_unasked(&self, connection: usize) -> bool {
        let passed = self.up.passed();
        let up: Vec<_> = passed
            .iter()
            .filter(|frame| (frame.connection, frame.way) == (connection, Way::Up))
            .filter(|frame| [DATA, HEADERS].contains(&frame.kind) || is_question(frame))
            .collect();
        up.windows(3).any(|frames| {
            is_question(frames[0])
                && (frames[1].kind, frames[1].flags & END_STREAM) == (DATA, END_STREAM)
                && frames[2].kind == HEADERS
        })
    }

    fn open(&self) -> f64 {
        self.proxy.metric("buildkit_lb_upstream_connections_active", &[])
    }
}

/// Whether `frame` asks whether the daemon is there.
fn is_question(frame: &Passed) -> bool {
    frame.way == Way::Up && frame.kind == PING && frame.flags == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_share_a_connection_only_one_after_the_other() {
    let tapped = Tapped::start().await;
    let (first, on_first) = tapped.solve("first").await;
    let (second, on_second) = tapped.solve("second").await;
    assert_ne!(on_first, on_second, "both run");
    tapped.daemon.finish();
    for solve in [first, second] {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
    tapped.reused(&[on_first, on_second]).await;
    let before = tapped.open();
    eventually("what nobody needs is closed", WAIT, || (tapped.open() < before).then_some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_an_answer_to_a_ping_gets_no_build() {
    let tapped = Tapped::start().await;
    tapped.daemon.finish();
    let (solve, connection) = tapped.solve("first").await;
    assert_eq!(solve.ended().await.code(), Some(0));
    let silent = tapped.reused(&[connection]).await;
    // The connection stays open, and nothing gets through.
    tapped.up.hold(silent, true);
    let (solve, connection) = tapped.solve("second").await;
    assert_eq!(solve.ended().await.code(), Some(0));
    assert_ne!(connection, silent);
    assert_eq!(tapped.up.kept(silent), 0, "no call was sent there");
    let eject = tapped.proxy.metric("buildkit_lb_upstream_errors_total", &["only"]);
    assert!(eject < 1.0, "the daemon is not at fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_daemon_answers_at_the_end_of_a_session_is_proof_for_a_moment() {
    let tapped = Tapped::start().await;
    tapped.daemon.finish();
    let connection = tapped.unasked().await;
    // That moment is over, and nothing gets through any more.
    tokio::time::sleep(Duration::from_millis(50)).await;
    tapped.up.hold(connection, true);
    let (solve, other) = tapped.solve("later").await;
    assert_eq!(solve.ended().await.code(), Some(0));
    assert_ne!(other, connection);
    assert_eq!(tapped.up.kept(connection), 0, "no call was sent there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_answers_are_not_read_yet_gets_no_build() {
    let tapped = Tapped::start().await;
    let asked = Arc::new(Notify::new());
    let (asks, waits) = (Arc::clone(&asked), asked);
    tapped.daemon.on("Control/Status", move |mut stream| {
        let asks = Arc::clone(&asks);
        async move {
            stream.read().await;
            let mut out = stream.headers();
            asks.notify_one();
            // More than the windows of client and proxy take.
            let _ =
                send(&mut out, Bytes::from([&[0, 0, 64, 0, 0][..], &[0; 4 << 20]].concat())).await;
        }
    });
    // The answer has no message, so the client gets the end although it reads nothing.
    tapped.daemon.on("Control/Solve", move |mut stream| {
        let waits = Arc::clone(&waits);
        async move {
            let message = stream.read().await;
            if message.windows(4).any(|part| part == b"read") {
                waits.notified().await;
            }
            let mut answer = head();
            answer.headers_mut().extend(trailers(0, ""));
            let _ = stream.respond.send_response(answer, true);
        }
    });
    let client = RawClient::reading_nothing(&tapped.proxy.socket()).await;
    let solve = client.solve("read", "read").await;
    let status = client.by_ref("Status", "read").await;
    assert_eq!(solve.ended().await.code(), Some(0));
    let unread = tapped.daemon.seen("Control/Status")[0].connection;
    assert_eq!(tapped.daemon.seen("Control/Solve")[0].connection, unread);
    for build in ["a", "b", "c"] {
        let (solve, connection) = tapped.solve(build).await;
        assert_eq!(solve.ended().await.code(), Some(0));
        assert_ne!(connection, unread, "its window is used by somebody else");
    }
    drop(status);
}

/// A real daemon counts PINGs, and answers too many with a GOAWAY.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_daemon_serves_many_builds_over_one_connection() {
    let daemon = Buildkitd::start("only");
    let up = Tap::start(daemon.addr().trim_start_matches("tcp://")).await;
    let backend = format!("only=tcp://{}", up.socket());
    let proxy = Builder::default().backend(&backend).start();
    proxy.wait_ready(1, WAIT);
    let context = Context::busybox("RUN true");
    let addr = proxy.addr();
    let builds = tokio::task::spawn_blocking(move || {
        for _ in 0..8 {
            let output = buildctl(&addr)
                .args(["build", "--frontend", "dockerfile.v0", "--local"])
                .arg(format!("context={}", context.path().display()))
                .arg("--local")
                .arg(format!("dockerfile={}", context.path().display()))
                .output()
                .expect("started");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    });
    builds.await.expect("all builds succeed");
    let passed = up.passed();
    let asked = passed.iter().filter(|frame| is_question(frame));
    let pings = asked.fold(HashMap::new(), |mut pings, frame| {
        *pings.entry(frame.connection).or_insert(0) += 1;
        pings
    });
    let most = pings.values().max();
    assert!(most.is_some_and(|most| *most > 3), "three builds would not show it: {pings:?}");
    let closed = |frame: &Passed| frame.way == Way::Down && frame.kind == GOAWAY;
    assert!(!passed.iter().any(closed), "the daemon took offence");
}
