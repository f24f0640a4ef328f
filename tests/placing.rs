//! How long it may take to find a place for a build, and what its calls are told meanwhile.

mod support;

use std::{net::TcpListener, time::Duration};

use bytes::Bytes;
use support::{
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};

/// How long BuildKit's clients wait for the answer to their build's Ping (grpcclient/client.go).
const PING_DEADLINE: Duration = Duration::from_secs(15);

/// Backends whose connections the system accepts, and nobody ever reads.
fn silent(count: usize) -> Vec<TcpListener> {
    (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect()
}

fn in_front_of(daemons: &[TcpListener]) -> Proxy {
    let builder =
        daemons.iter().enumerate().fold(Builder::default(), |builder, (number, daemon)| {
            let address = daemon.local_addr().expect("bound");
            builder.backend(&format!("silent-{number}=tcp://{address}"))
        });
    builder.policy("random").start()
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
