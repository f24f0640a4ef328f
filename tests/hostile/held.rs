//! Clients whose builds wait for a backend take little memory, however they behave, and leave nothing behind.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl_build, succeed},
        eventually,
        fake_daemon::send,
        proxy::{Builder, Proxy},
        raw_client::{Answered, Call, RawClient},
    },
};

const WAIT: Duration = Duration::from_secs(60);

/// Waits until nothing of the clients is left: neither calls nor what they have sent.
fn until_nothing_is_left(proxy: &Proxy) {
    eventually("nothing is left of them", WAIT, || {
        let left = ["buildkit_lb_parked_streams", "buildkit_lb_held_bytes"];
        left.iter().all(|metric| proxy.metric(metric, &[]) == 0.0).then_some(())
    });
}

/// The calls of one build that waits.
struct Held {
    _solve: Call,
    _status: Answered,
    session: Answered,
}

/// Starts a build. It waits once the proxy answers on its Session and its Status.
async fn hold(client: &RawClient, number: usize) -> Held {
    let (build, session) = (format!("r{number}"), format!("s{number}"));
    let solve = client.solve(&build, &session).await;
    let status = client.by_ref("Status", &build).await;
    let session = client.session(&session).await;
    let session = session.answered().await.expect("headers");
    let status = status.answered().await.expect("headers");
    Held { _solve: solve, _status: status, session }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_send_without_end_and_statuses_that_nobody_reads_harm_nobody() {
    const BUILDS: usize = 50;
    let mut daemon = Buildkitd::absent("only");
    let proxy = Proxy::in_front_of([&daemon]).args(&["--memory-budget", "32MiB"]).start();
    let attacker = RawClient::reading_nothing(&proxy.socket()).await;
    let held = join_all((0..BUILDS).map(|number| hold(&attacker, number))).await;
    let before = proxy.process.memory_kib("VmRSS");
    let upload = async |mut held: Held| {
        // The client sends as much as the proxy takes; more does not fit into the windows.
        let _ = send(&mut held.session.upload, Bytes::from(vec![0; 4 << 20])).await;
    };
    let uploads = tokio::spawn(async move { join_all(held.into_iter().map(upload)).await });
    eventually("what they send is held", WAIT, || {
        let held = proxy.metric("buildkit_lb_held_bytes", &[]);
        // Each call has a window of 64 KiB. A message that the end of the window cuts may not be counted.
        (held >= (BUILDS * (60 << 10)) as f64).then_some(())
    });
    let grown = proxy.process.memory_kib("VmHWM").saturating_sub(before);
    eprintln!("grew by {grown} KiB");
    assert!(grown < 96 << 10, "grew by {grown} KiB");
    // The clients are gone before there is a daemon that would have to take what they sent.
    uploads.abort();
    drop(attacker);
    until_nothing_is_left(&proxy);
    daemon.restart();
    bystander::builds(&proxy).await;
}

/// A connection from one of ten addresses.
async fn connect(proxy: &Proxy, number: usize) -> RawClient {
    let socket = TcpSocket::new_v4().expect("a socket");
    let address = [127, 0, 0, 2 + u8::try_from(number % 10).expect("small")];
    socket.bind((address, 0).into()).expect("an address of this machine");
    let proxy = proxy.socket().parse().expect("an address");
    let stream: TcpStream = socket.connect(proxy).await.expect("the proxy accepts");
    RawClient::over(stream).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_clients_that_wait_take_little_and_leave_without_a_trace() {
    const CLIENTS: usize = 1_000;
    let mut daemon = Buildkitd::absent("only");
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let clients = join_all((0..CLIENTS).map(|number| connect(&proxy, number))).await;
    // Each client has asked one question, so that the memory of its connection is already counted.
    join_all(clients.iter().map(async |client| client.control("Other").await.ended().await)).await;
    let rss = || proxy.process.memory_kib("VmRSS");
    let before = rss();
    let builds = clients.iter().enumerate().map(|(number, client)| hold(client, number));
    let held = join_all(builds).await;
    let each = (rss() - before) * 1024 / CLIENTS as u64;
    eprintln!("a held build takes {each} bytes");
    assert!(each < 128 << 10, "{each} bytes");
    drop((held, clients));
    until_nothing_is_left(&proxy);
    eventually("they are gone", WAIT, || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 0.0).then_some(())
    });
    daemon.restart();
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN true")));
    assert_eq!(daemon.histories().lines().skip(1).count(), 1);
}
