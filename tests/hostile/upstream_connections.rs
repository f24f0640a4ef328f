//! Connections to daemons: one client cannot have them all, and a want of them is no daemon's fault.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::{eventually, fake_daemon::FakeDaemon, proxy::Builder, raw_client::RawClient};

/// What a refused call is told: it is our limit, or our want.
const OURS: [Option<&str>; 2] = [Some("limit"), Some("shortage")];

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_out_of_descriptors_blames_no_daemon() {
    let daemon = FakeDaemon::start("only").await;
    let builder = Builder::default().backend(&daemon.backend()).policy("random").descriptors(128);
    let proxy = builder.args(&["--max-connections", "1000"]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let client = RawClient::connect(&proxy.socket()).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(TcpStream::connect(proxy.socket()).await.expect("the system accepts"));
    }
    let mut open = Vec::new();
    let mut refused = 0;
    for build in 0..200 {
        let build = build.to_string();
        let solve = client.solve(&build, &build).await;
        // The answer of a build that found its place does not come before its end.
        let ping = client.bridge("Ping", &build).await.ended().await;
        match ping.code() {
            Some(0) => open.push(solve),
            _ => {
                assert!(OURS.contains(&ping.marker()), "{ping:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "{} builds found their place", open.len());
    drop((idle, open));
    eventually("there is room again", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 1.0).then_some(())
    });
    assert_eq!(proxy.metric("buildkit_lb_upstream_errors_total", &[]), 0.0);
    assert!(proxy.records("backend ejected").is_empty());
    let _solve = client.solve("again", "again").await;
    assert_eq!(client.bridge("Ping", "again").await.ended().await.code(), Some(0));
}
