//! A collector that is not there.

use serde_json::json;

use crate::{
    collector::{Collector, WAIT},
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl_build, succeed},
        eventually, free_port,
        proxy::Proxy,
    },
};

#[test]
fn builds_go_on_while_the_collector_is_away_and_the_loss_is_counted_and_told_once() {
    let port = free_port();
    let daemon = Buildkitd::start("d0");
    let endpoint = format!("http://127.0.0.1:{port}");
    let proxy = Proxy::in_front_of([&daemon]).args(&["--otlp-endpoint", &endpoint]).start();
    let context = Context::busybox("RUN echo unseen");
    let spans =
        |result: &str| proxy.metric("buildkit_lb_spans_total", &[&format!("result=\"{result}\"")]);
    for build in 1..=2 {
        let before = spans("failed");
        succeed(&mut buildctl_build(&proxy.addr(), &context));
        eventually(&format!("the loss of build {build} is counted"), WAIT, || {
            (spans("failed") >= before + 4.0).then_some(())
        });
    }
    let told = || proxy.records("cannot export spans").len();
    assert_eq!((told(), spans("exported")), (1, 0.0));

    let collector = Collector::start_at(port, &json!({}));
    eventually("spans are exported again", WAIT, || {
        succeed(&mut buildctl_build(&proxy.addr(), &context));
        (spans("exported") > 0.0).then_some(())
    });
    assert!(!collector.spans("buildkit-lb").is_empty());
    eventually("the recovery is told", WAIT, || {
        (proxy.records("spans are exported again").len() == 1).then_some(())
    });
    assert_eq!(told(), 1);
}
