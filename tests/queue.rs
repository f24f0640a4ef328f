//! Builds that wait for their turn: for a backend that takes them.

mod support;

use std::time::Duration;

use bytes::Bytes;
use support::{
    eventually,
    fake_daemon::FakeDaemon,
    free_port,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};

const WAIT: Duration = Duration::from_secs(20);

/// A proxy whose only daemon is yet to start on `port`.
fn before_its_daemon(port: u16, args: &[&str]) -> Proxy {
    Builder::default().backend(&format!("late=tcp://127.0.0.1:{port}")).args(args).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_wait_for_the_first_backend_and_run_on_it() {
    let port = free_port();
    let proxy = before_its_daemon(port, &[]);
    let client = RawClient::connect(&proxy.socket()).await;
    let mut builds = Vec::new();
    for number in 0..3 {
        let (id, session) = (format!("r{number}"), format!("s{number}"));
        builds.push((client.session(&session).await, client.solve(&id, &session).await));
    }
    // Each Session waits for its Solve, which waits for a backend.
    eventually("all wait", WAIT, || {
        (proxy.metric("buildkit_lb_parked_streams", &[]) >= 3.0).then_some(())
    });
    let daemon = FakeDaemon::start_at("late", port).await;
    eventually("all arrive", WAIT, || {
        let seen = |method| daemon.seen(method).len() == 3;
        (seen("Control/Solve") && seen("Control/Session")).then_some(())
    });
    daemon.finish();
    for (_session, solve) in builds {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_has_waited_as_long_as_it_may_is_refused_with_the_reason() {
    let proxy = before_its_daemon(free_port(), &["--max-wait", "1s"]);
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    let status = client.by_ref("Status", "r").await;
    let ping = client.bridge("Ping", "r").await;
    let solve = client.solve("r", "s").await;
    for ended in [solve.ended().await, ping.ended().await] {
        assert_eq!((ended.code(), ended.marker()), (Some(14), Some("waited_out")), "{ended:?}");
        let told = ended.message();
        assert!(told.contains("within 1s") && told.contains("backend late"), "{told}");
    }
    assert_eq!(status.ended().await.code(), Some(0), "an error here would hide the Solve's");
    session.upload.send_data(Bytes::new(), true).expect("half-closed");
    assert_eq!(session.ended().await.code(), Some(0));
}
