//! A buildx builder whose nodes all lead to one pool gives the builds of all nodes the same ref.

mod support;

use std::{collections::BTreeMap, process::Output};

use support::{
    buildkitd::Buildkitd,
    client::{Buildx, Context, run, text},
    proxy::Proxy,
    spray,
};

/// A builder with two nodes, which are the proxy under two names.
fn two_nodes(addr: &str) -> Buildx {
    let again = addr.replace("127.0.0.1", "localhost");
    Buildx::with_nodes(&[("linux/amd64", addr), ("linux/386", &again)])
}

/// Builds for both platforms.
fn build(buildx: &Buildx, context: &Context) -> Output {
    let path = context.path().display().to_string();
    let args = ["build", "--progress=plain", "--platform=linux/amd64,linux/386", "--no-cache"];
    run(buildx.command(&args).args(["-o", "type=cacheonly", &path]))
}

#[test]
fn builds_of_two_nodes_with_one_ref_run_side_by_side_and_are_never_mixed() {
    const ROUNDS: usize = 8;
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let buildx = two_nodes(&proxy.addr());
    let context = Context::busybox("ARG TARGETARCH\nRUN echo building for $TARGETARCH");
    for _ in 0..ROUNDS {
        let output = build(&buildx, &context);
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        for platform in ["building for amd64", "building for 386"] {
            assert!(text.contains(platform), "{platform} is missing in:\n{text}");
        }
    }
    // For each ref, the backends that ran a build of this ref.
    let mut refs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in proxy.records("build ended") {
        assert_eq!(record["code"], "OK", "{record}");
        let word = |field: &str| record[field].as_str().expect("a text").to_owned();
        refs.entry(word("ref")).or_default().push(word("backend"));
    }
    let shared: Vec<_> = refs.values().filter(|backends| backends.len() > 1).collect();
    assert_eq!(shared.len(), ROUNDS, "{refs:?}");
    assert!(shared.iter().all(|backends| backends[0] != backends[1]), "{refs:?}");
}

#[test]
fn where_there_is_one_daemon_the_second_build_with_a_ref_is_told_what_to_do() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    // Long enough that both builds run at the same time.
    let context = Context::busybox("RUN sleep 5");
    let output = build(&two_nodes(&proxy.addr()), &context);
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("no other backend can take a second one"), "{text}");
    assert!(text.contains("the builder needs only one node"), "{text}");
}

#[test]
fn behind_a_hop_that_mixes_connections_builds_with_one_ref_end_before_they_are_mixed() {
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let addr = runtime.block_on(spray::start(proxy.socket()));
    let context = Context::busybox("RUN sleep 5");
    let output = build(&two_nodes(&addr), &context);
    let text = text(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("the builder needs only one node"), "{text}");
}
