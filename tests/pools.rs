//! Several fleets behind one proxy: each has its own address and policy, and no fleet sees another's builds.

mod support;

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl_build, run, succeed, text},
    eventually,
    proxy::{Builder, Proxy},
    tools::tool,
};

/// The longest time for the first probes.
const READY: Duration = Duration::from_secs(20);

/// A proxy with a pool for each fleet. The first pool places builds by key, the second by load.
fn start(amd: &[Buildkitd], arm: &[Buildkitd]) -> Proxy {
    let pool = |name: &str, policy: &str, fleet: &[Buildkitd]| {
        let backends: Vec<_> = fleet.iter().map(Buildkitd::backend).collect();
        format!(
            "[[pool]]\nname = '{name}'\nlisten = 'tcp://127.0.0.1:0'\npolicy = '{policy}'\n\
             backend = {backends:?}\n"
        )
    };
    let (amd, arm) = (pool("amd", "consistent-hash", amd), pool("arm", "least-builds", arm));
    Builder::default().file(&format!("slow-start = '0s'\nmax-wait = '0s'\n{amd}{arm}")).start()
}

#[test]
fn each_pool_builds_on_its_own_daemons_by_its_own_policy() {
    let fleet = Buildkitd::fleet(4);
    let (amd, arm) = fleet.split_at(2);
    let proxy = start(amd, arm);
    proxy.wait_ready(4, READY);
    let context = Context::busybox("RUN echo pooled");
    for pool in ["amd", "arm"] {
        let build = || {
            let mut build = buildctl_build(&proxy.addr_of(pool), &context);
            succeed(build.args(["--opt", "buildkit-lb-key=one"]));
        };
        (0..4).for_each(|_| build());
    }
    let records = proxy.records("build ended");
    let places = |pool: &str| -> Vec<String> {
        let own = records.iter().filter(|record| record["pool"] == pool);
        own.map(|record| record["backend"].as_str().expect("a name").to_owned()).collect()
    };
    let (on_amd, on_arm) = (places("amd"), places("arm"));
    assert_eq!((on_amd.len(), on_arm.len()), (4, 4));
    assert!(on_amd.iter().all(|name| *name == on_amd[0]), "one key, one daemon: {on_amd:?}");
    assert!(amd.iter().any(|daemon| daemon.name == on_amd[0]));
    assert!(on_arm.iter().all(|name| arm.iter().any(|daemon| daemon.name == *name)));
    for (pool, policy) in [("amd", "consistent-hash"), ("arm", "least-builds")] {
        let labels = [&format!("pool=\"{pool}\"")[..], &format!("policy=\"{policy}\"")];
        assert_eq!(proxy.metric("buildkit_lb_route_decisions_total", &labels), 4.0);
        assert_eq!(proxy.metric("buildkit_lb_builds_total", &labels[..1]), 4.0);
        assert!(proxy.metric("buildkit_lb_connections_total", &labels[..1]) >= 4.0);
    }
    // A question to the whole fleet goes to the fleet of the client's pool only.
    let told = |pool: &str| {
        let mut histories = std::process::Command::new(tool("buildctl"));
        succeed(histories.args(["--addr", &proxy.addr_of(pool), "debug", "histories"]))
    };
    for (pool, other) in [("amd", "arm"), ("arm", "amd")] {
        let refs = |pool: &str| -> Vec<String> {
            let own = records.iter().filter(|record| record["pool"] == pool);
            own.map(|record| record["ref"].as_str().expect("a ref").to_owned()).collect()
        };
        let told = told(pool);
        assert!(refs(pool).iter().all(|build| told.contains(build)), "{told}");
        assert!(!refs(other).iter().any(|build| told.contains(build)), "{told}");
    }
}

#[test]
fn a_pool_without_daemons_leaves_the_others_alone_and_is_named() {
    let mut fleet = Buildkitd::fleet(2);
    let arm = fleet.split_off(1);
    let proxy = start(&fleet, &arm);
    proxy.wait_ready(2, READY);
    assert_eq!(proxy.admin("GET", "/readyz"), (200, "ok\n".to_owned()));
    fleet[0].kill();
    let context = Context::busybox("RUN true");
    let refused = run(&mut buildctl_build(&proxy.addr_of("amd"), &context));
    assert!(text(&refused).contains("backend d0"), "{}", text(&refused));
    succeed(&mut buildctl_build(&proxy.addr_of("arm"), &context));
    let (code, told) = proxy.admin("GET", "/readyz");
    assert_eq!((code, told.as_str()), (200, "ok\npool amd: no backend is ready\n"));
    let status = proxy.status();
    let ready = |index: usize| status["pools"][index]["ready"].clone();
    assert_eq!((ready(0), ready(1)), (Value::Bool(false), Value::Bool(true)));
}

#[test]
fn a_daemon_of_two_pools_is_cordoned_in_the_one_that_is_named_or_in_both() {
    let fleet = Buildkitd::fleet(1);
    let proxy = start(&fleet, &fleet);
    proxy.wait_ready(2, READY);
    let context = Context::busybox("RUN sleep 1000");
    let mut build = buildctl_build(&proxy.addr_of("amd"), &context);
    let mut client = build.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
    let builds = |query: &str| {
        let told = proxy.admin("GET", &format!("/backends/d0/builds{query}")).1;
        serde_json::from_str::<Value>(&told).expect("JSON")["builds"].as_u64().expect("a number")
    };
    eventually("the build runs", Duration::from_secs(20), || (builds("") == 1).then_some(()));
    assert_eq!((builds("?pool=amd"), builds("?pool=arm")), (1, 0));
    let cordoned = || proxy.metric("buildkit_lb_backend_state", &["state=\"cordoned\""]);
    assert_eq!(proxy.control("POST", "/backends/d0/cordon?pool=arm").0, 200);
    assert_eq!(cordoned(), 1.0);
    assert_eq!(proxy.control("DELETE", "/backends/d0/cordon").0, 200);
    assert_eq!(cordoned(), 0.0);
    let (code, told) = proxy.control("POST", "/backends/d0/drain?timeout=2s");
    assert_eq!(code, 504, "{told}");
    assert!(told.contains("d0 is drained") && told.contains("builds left: 1"), "{told}");
    assert_eq!(cordoned(), 2.0);
    assert_eq!(proxy.admin("GET", "/backends/d0/builds?pool=x86").0, 404);
    assert_eq!(proxy.control("POST", "/backends/d0/drain?wait=1s").0, 400);
    client.kill().expect("killed");
    client.wait().expect("ended");
}
