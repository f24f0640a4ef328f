//! Calls that wait for a build which never comes take no room from other clients.

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
    // The proxy's SETTINGS tell the client how many streams it may open.
    assert_eq!(attacker.control("Info").await.ended().await.code(), Some(0));
    let mut calls = FuturesUnordered::new();
    // The headers suffice to park a call. On a slow machine, waiting for the window of each call can take longer than
    // the first calls are parked.
    let path = "/moby.buildkit.v1.frontend.LLBBridge/Ping";
    for number in 0..CALLS {
        let build = format!("nobody{number}");
        calls.push(attacker.call(path, &[("buildkit-controlapi-buildid", &build)]).await.ended());
    }
    // The proxy refuses some of the calls at once, in any order, while the others still wait.
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
