//! How long the proxy may take to place a build, and what the build's calls are told meanwhile.

mod support;

use std::{net::TcpListener, pin::pin, time::Duration};

use bytes::Bytes;
use h2::Reason;
use support::{
    fake_daemon::FakeDaemon,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};

/// The time that BuildKit's clients wait for the answer to their build's Ping (grpcclient/client.go).
const PING_DEADLINE: Duration = Duration::from_secs(15);

/// Backends whose connections the system accepts and nobody ever reads.
fn silent(count: usize) -> Vec<TcpListener> {
    (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect()
}

fn in_front_of(daemons: &[TcpListener]) -> Proxy {
    let builder =
        daemons.iter().enumerate().fold(Builder::default(), |builder, (number, daemon)| {
            let address = daemon.local_addr().expect("bound");
            builder.backend(&format!("silent-{number}=tcp://{address}"))
        });
    builder.policy("random").args(&["--max-wait", "0s"]).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_daemon_is_silent_all_calls_of_a_build_get_its_solves_error() {
    let daemons = silent(6);
    let proxy = in_front_of(&daemons);
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    let status = client.by_ref("Status", "r").await;
    let ping = client.bridge("Ping", "r").await;
    let solve = client.solve("r", "s").await;
    let ping = tokio::time::timeout(PING_DEADLINE, ping.ended()).await;
    let ping = ping.expect("before a client gives its Ping up");
    let solve = solve.ended().await;
    for ended in [&ping, &solve] {
        assert_eq!((ended.code(), ended.marker()), (Some(14), Some("no_backend")), "{ended:?}");
    }
    assert!(solve.message().matches("backend silent-").count() >= 3, "{}", solve.message());
    let status = status.ended().await;
    assert_eq!(status.code(), Some(0), "an error here would hide the Solve's: {status:?}");
    session.upload.send_data(Bytes::new(), true).expect("half-closed");
    assert_eq!(session.ended().await.code(), Some(0));
    assert_eq!(proxy.metric("buildkit_lb_parked_streams", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ping_whose_client_could_not_send_its_solve_waits_no_longer_than_at_a_daemon() {
    let daemon = FakeDaemon::start("only").await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let patient = RawClient::connect(&proxy.socket()).await;
    let patient = patient.bridge("Ping", "still-to-come").await;
    // A client whose message is too large does this: the stream is open, and no message comes.
    let client = RawClient::connect(&proxy.socket()).await;
    let mut solve = client.call("/moby.buildkit.v1.Control/Solve", &[]).await;
    solve.upload.send_reset(Reason::CANCEL);
    let late = client.bridge("Ping", "late").await;
    let lost = client.bridge("Ping", "lost").await;
    let served = client.solve("late", "s").await;
    assert_eq!(late.ended().await.code(), Some(0), "its Solve has come");
    let mut patient = pin!(patient.ended());
    let lost = tokio::select! {
        biased;
        early = &mut patient => panic!("it began before, and its Solve may come: {early:?}"),
        lost = lost.ended() => lost,
    };
    assert_eq!((lost.code(), lost.marker()), (Some(5), Some("unknown_build")), "{lost:?}");
    assert_eq!(patient.await.marker(), Some("unknown_build"));
    drop(served);
}
