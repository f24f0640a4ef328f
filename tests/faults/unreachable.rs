//! Daemons that are not there, say nothing, or close at once: builds pass them over.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    eventually, fake_daemon::FakeDaemon, frames::PREFACE, free_port, proxy::Builder,
    raw_client::RawClient,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_there_is_passed_over() {
    let fleet = FakeDaemon::fleet(1).await;
    let gone = format!("gone=tcp://127.0.0.1:{}", free_port());
    let proxy =
        Builder::default().backend(&fleet[0].backend()).backend(&gone).policy("random").start();
    fleet[0].finish();
    for build in 0..20 {
        let client = RawClient::connect(&proxy.socket()).await;
        let id = build.to_string();
        let ended = client.solve(&id, &id).await.ended().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    assert_eq!(fleet[0].seen("Control/Solve").len(), 20);
    eventually("a probe fails", Duration::from_secs(10), || {
        let refused = proxy.metric("buildkit_lb_upstream_errors_total", &["gone", "refused"]);
        (refused >= 1.0).then_some(())
    });
}

/// Starts ten builds at once. Each must end well, although one of two daemons is at `port`.
async fn ten_builds_beside(port: u16) {
    let fleet = FakeDaemon::fleet(1).await;
    let proxy = Builder::default()
        .backend(&fleet[0].backend())
        .backend(&format!("odd=tcp://127.0.0.1:{port}"))
        .policy("random")
        .start();
    fleet[0].finish();
    let mut builds = Vec::new();
    for build in 0..10 {
        let client = RawClient::connect(&proxy.socket()).await;
        let id = build.to_string();
        builds.push(client.solve(&id, &id).await);
    }
    for build in builds {
        let ended = tokio::time::timeout(Duration::from_secs(8), build.ended()).await;
        assert_eq!(ended.expect("a bounded wait").code(), Some(0));
    }
    assert_eq!(fleet[0].seen("Control/Solve").len(), 10);
    // The daemon has passed no probe, so no build had to try it.
    let took_none = ["backend=\"odd\",state=\"ready\""];
    assert_eq!(proxy.metric("buildkit_lb_backend_state", &took_none), 0.0);
    eventually("a probe fails", Duration::from_secs(20), || {
        (proxy.metric("buildkit_lb_upstream_errors_total", &["odd"]) >= 1.0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_accepts_and_says_nothing_is_passed_over() {
    // The system accepts connections for it, as for a daemon that is stopped or stuck.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    ten_builds_beside(silent.local_addr().expect("bound").port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_closes_at_once_is_passed_over() {
    let closing = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = closing.local_addr().expect("bound").port();
    tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    ten_builds_beside(port).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_wait_for_the_preface_before_it_speaks() {
    let daemon = FakeDaemon::start("only").await;
    let polite = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let socket = polite.local_addr().expect("bound").to_string();
    let upstream = daemon.socket();
    tokio::spawn(async move {
        while let Ok((mut down, _peer)) = polite.accept().await {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut preface = [0; PREFACE.len()];
                down.read_exact(&mut preface).await.expect("a preface");
                let mut up = TcpStream::connect(upstream).await.expect("the daemon accepts");
                up.write_all(&preface).await.expect("sent");
                let _ = tokio::io::copy_bidirectional(&mut down, &mut up).await;
            });
        }
    });
    let proxy = Builder::default().backend(&daemon.behind(&socket)).start();
    daemon.finish();
    let client = RawClient::connect(&proxy.socket()).await;
    assert_eq!(client.solve("r", "s").await.ended().await.code(), Some(0));
}
