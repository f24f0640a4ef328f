//! One client cannot take all connections to daemons, and a lack of connections counts as no daemon's fault.

use std::time::Duration;

use rlimit::Resource;

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        eventually,
        fake_daemon::FakeDaemon,
        proxy::{Builder, Proxy},
        raw_client::{Call, RawClient},
    },
};

/// The marker of a refused call: a limit of the proxy, or a lack of file descriptors.
const OURS: [Option<&str>; 2] = [Some("limit"), Some("shortage")];

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_out_of_descriptors_blames_no_daemon() {
    let daemon = FakeDaemon::start("only").await;
    let proxy = Builder::default().backend(&daemon.backend()).policy("random").start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let client = RawClient::connect(&proxy.socket()).await;
    assert_eq!(client.control("Info").await.ended().await.code(), Some(0), "it is accepted");
    let pid = proxy.process.pid().cast_signed();
    let (mut soft, mut hard) = (0, 0);
    let granted = Some((&mut soft, &mut hard));
    rlimit::prlimit(pid, Resource::NOFILE, None, granted).expect("the process runs");
    rlimit::prlimit(pid, Resource::NOFILE, Some((5, hard)), None).expect("lowered");
    let mut open = Vec::new();
    let mut refused = 0;
    for build in 0..20 {
        let build = build.to_string();
        let solve = client.solve(&build, &build).await;
        // A build that found a place answers only when it ends.
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
    drop(open);
    rlimit::prlimit(pid, Resource::NOFILE, Some((soft, hard)), None).expect("raised");
    eventually("there is room again", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 1.0).then_some(())
    });
    assert_eq!(proxy.metric("buildkit_lb_upstream_errors_total", &[]), 0.0);
    assert!(proxy.records("backend ejected").is_empty());
    let _solve = client.solve("again", "again").await;
    assert_eq!(client.bridge("Ping", "again").await.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_have_all_connections_to_daemons() {
    const SESSIONS: usize = 400;
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).descriptors(512).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let client = RawClient::connect(&proxy.socket()).await;
    let mut sessions = Vec::new();
    for session in 0..SESSIONS {
        let (id, trace) = (format!("s{session}"), format!("{:032x}", session + 1));
        let trace = format!("00-{trace}-0000000000000001-01");
        let headers = [("x-docker-expose-session-uuid", &*id), ("traceparent", &trace)];
        sessions.push(client.call("/moby.buildkit.v1.Control/Session", &headers).await);
    }
    let answers = sessions.into_iter().map(Call::answered);
    let answers: Vec<_> = futures_util::future::join_all(answers).await;
    let mut open = Vec::new();
    let mut refused = 0;
    for answer in answers {
        let answer = answer.expect("headers");
        match answer.headers.get("buildkit-lb-error") {
            None => open.push(answer),
            Some(word) => {
                assert_eq!(word, "limit");
                refused += 1;
            }
        }
    }
    let connections = || proxy.metric("buildkit_lb_upstream_connections_active", &[]);
    assert!(open.len() >= 42, "a bake of forty targets fits, not {}", open.len());
    assert!(connections() < 120.0, "{} connections, {refused} refused", connections());
    bystander::builds(&proxy).await;
    assert_eq!(proxy.metric("buildkit_lb_upstream_errors_total", &[]), 0.0);
    drop((open, client));
    // Those that sessions have left are kept for ten seconds.
    eventually("all is given back", Duration::from_secs(30), || {
        // The connections of the proxy's probes stay.
        (connections() <= 2.0).then_some(())
    });
}
