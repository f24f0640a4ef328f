//! The proxy reads from its daemons' own metrics how many steps were cached.

mod support;

use std::time::Duration;

use serde_json::json;
use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl_build, succeed},
    eventually, free_port,
    proxy::{Builder, Proxy},
};

/// How long a busy machine may take until the daemon has been read again, which happens every 10 s.
const WAIT: Duration = Duration::from_secs(60);

#[test]
fn a_warm_build_raises_the_cached_share_of_its_backend_and_policy() {
    let daemon = Buildkitd::start_with_metrics("d0");
    let silent = Buildkitd::start("d1");
    let proxy = Builder::default()
        .backend(&format!("{}?metrics={}", daemon.backend(), daemon.metrics_port()))
        .backend(&format!("{}?capacity=1&metrics=127.0.0.1:{}", silent.backend(), free_port()))
        .policy("consistent-hash")
        .start();
    let reads = |result: &str| {
        let label = format!("result=\"{result}\"");
        proxy.metric("buildkit_lb_backend_metrics_reads_total", &[&label])
    };
    // Steps that the daemon has counted before the first read are nobody's.
    eventually("the daemon has been read", WAIT, || (reads("ok") >= 1.0).then_some(()));
    silent_takes_no_builds(&proxy);
    let steps = |kind: &str| {
        let labels = ["backend=\"d0\"", "policy=\"consistent-hash\"", &format!("kind=\"{kind}\"")];
        proxy.metric("buildkit_lb_backend_steps_total", &labels)
    };
    let context = Context::busybox("RUN echo cached\nRUN echo more");
    let mut counts = [(0.0, 0.0); 3];
    for build in 1..=2 {
        succeed(&mut buildctl_build(&proxy.addr(), &context));
        counts[build] = eventually("the steps of the build are counted", WAIT, || {
            // All steps are counted after the cached ones, so they are asked for before them.
            let total = steps("total");
            (total > counts[build - 1].1).then(|| (steps("cached"), total))
        });
    }
    let [_, (cold_cached, cold_total), (cached, total)] = counts;
    let warm_share = (cached - cold_cached) / (total - cold_total);
    assert!(warm_share > cold_cached / cold_total + 0.3, "{counts:?}");

    let status = proxy.status();
    let [own, other] = [&status["backends"][0], &status["backends"][1]];
    assert_eq!((&own["name"], &own["steps_total"]), (&json!("d0"), &json!(total as u64)));
    assert_eq!((&other["name"], &other["steps_total"]), (&json!("d1"), &json!(null)));
    eventually("the other daemon was tried again", WAIT, || (reads("failed") >= 2.0).then_some(()));
    let told = proxy.records("cannot read the metrics of a backend");
    assert_eq!(told.iter().map(|fields| &fields["backend"]).collect::<Vec<_>>(), ["d1"]);
    assert_eq!(proxy.metric("buildkit_lb_backend_steps_total", &["backend=\"d1\""]), 0.0);
}

/// Sends all builds to the daemon whose metrics are read.
fn silent_takes_no_builds(proxy: &Proxy) {
    assert_eq!(proxy.control("POST", "/backends/d1/cordon").0, 200);
}
