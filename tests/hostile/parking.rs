//! Calls that wait for a build which never comes take nobody else's room.

use std::time::Duration;

use futures_util::{StreamExt as _, stream::FuturesUnordered};

use crate::{
    bystander,
    support::{buildkitd::Buildkitd, eventually, proxy::Proxy, raw_client::RawClient},
};

/// More calls than one connection may have waiting.
const CALLS: usize = 6_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_calls_wait_for_nobody_is_refused_alone() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let attacker = RawClient::connect(&proxy.socket()).await;
    // It learns from the proxy's SETTINGS how many streams it may open.
    assert_eq!(attacker.control("Info").await.ended().await.code(), Some(0));
    let mut calls = FuturesUnordered::new();
    // Their headers are enough to park them; to wait for each one's window could take longer, on a slow
    // machine, than the first of them are parked.
    let path = "/moby.buildkit.v1.frontend.LLBBridge/Ping";
    for number in 0..CALLS {
        let build = format!("nobody{number}");
        calls.push(attacker.call(path, &[("buildkit-controlapi-buildid", &build)]).await.ended());
    }
    // Those that are refused are so at once, in whatever order, while the others still wait.
    let first = calls.next().await.expect("one");
    assert_eq!((first.code(), first.marker()), (Some(8), Some("parked")), "{first:?}");
    let parked = || proxy.metric("buildkit_lb_parked_streams", &[]);
    assert!(parked() > 0.0);
    bystander::builds(&proxy).await;
    drop(calls);
    drop(attacker);
    eventually("no call waits any more", Duration::from_secs(10), || {
        (parked() == 0.0).then_some(())
    });
}
