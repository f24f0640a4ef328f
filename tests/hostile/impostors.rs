//! A ref is no secret: a client that knows the ref of somebody else's build cannot end that build.

use std::time::Duration;

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd, fake_daemon::FakeDaemon, proxy::Builder, proxy::Proxy,
        raw_client::RawClient,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_with_the_ref_of_a_running_build_does_not_end_that() {
    let fleet = FakeDaemon::fleet(2).await;
    let proxy =
        Builder::default().backend(&fleet[0].backend()).backend(&fleet[1].backend()).start();
    let victim = RawClient::connect(&proxy.socket()).await;
    let _solve = victim.solve("r", "s").await;
    let _session = victim.session("s").await.answered().await.expect("headers");
    // The trace of the build shows a hop that mixes connections.
    let trace = ("traceparent", "00-00000000000000000000000000000007-0000000000000001-01");
    let [one, other] =
        [RawClient::connect(&proxy.socket()).await, RawClient::connect(&proxy.socket()).await];
    let _own = one.solve_with("own", "theirs", &[], &[trace]).await;
    let headers = [("x-docker-expose-session-uuid", "theirs"), trace];
    let session = other.call("/moby.buildkit.v1.Control/Session", &headers).await;
    let _session = session.answered().await.expect("headers");
    // Other clients ask for the victim's build, and have been answered.
    let _status = other.by_ref("Status", "r").await.answered().await;
    let _solves = [
        one.solve_with("r", "theirs", &[], &[trace]).await,
        other.solve_with("r", "more", &[], &[trace]).await,
    ];
    let _status = one.by_ref("Status", "r").await.answered().await;
    for _ in 0..10 {
        let ended = victim.bridge("Ping", "r").await.ended().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_build_ends_well_beside_solves_with_its_ref() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let attacker = RawClient::connect(&proxy.socket()).await;
    let attack = async {
        loop {
            let status = tokio::task::block_in_place(|| proxy.status());
            for build in status["builds"].as_array().into_iter().flatten() {
                let Some(build) = build["ref"].as_str().filter(|build| *build != "mine") else {
                    continue;
                };
                let _solve = attacker.solve(build, "mine").await;
                let _status = attacker.by_ref("Status", build).await.answered().await;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = attack => {}
        () = bystander::builds(&proxy) => {}
    }
}
