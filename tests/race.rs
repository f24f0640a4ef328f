//! Many builds at once, and each call of a client over another connection: no build may fail.

mod support;

use std::{
    collections::HashMap,
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use support::{
    buildkitd::Buildkitd,
    client::{Buildx, Context, buildctl_build, run, text},
    fake_daemon::FakeDaemon,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
    spray,
};

/// The calls that each build makes once.
const CALLS: [&str; 4] = ["Control/Session", "Control/Solve", "Control/Status", "LLBBridge/Ping"];

#[test]
fn two_hundred_builds_with_sprayed_calls_all_succeed() {
    const BUILDS: usize = 200;
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let addr = runtime.block_on(spray::start(proxy.socket()));
    let contexts: Vec<_> = (0..8)
        .map(|number| Context::new(&format!("FROM scratch\nCOPY busybox /{number}\n")))
        .collect();
    let next = Arc::new(AtomicUsize::new(0));
    let failures: Arc<Mutex<Vec<Output>>> = Arc::default();
    std::thread::scope(|scope| {
        for context in &contexts {
            let (next, failures, addr) = (Arc::clone(&next), Arc::clone(&failures), &addr);
            scope.spawn(move || {
                while next.fetch_add(1, Ordering::Relaxed) < BUILDS {
                    let output = run(&mut buildctl_build(addr, context));
                    if !output.status.success() {
                        failures.lock().expect("unpoisoned").push(output);
                    }
                }
            });
        }
    });
    let failures = failures.lock().expect("unpoisoned");
    assert!(failures.is_empty(), "{} failed, first:\n{}", failures.len(), text(&failures[0]));
    let records = proxy.records("build ended");
    assert_eq!(records.len(), BUILDS);
    assert!(records.iter().all(|record| record["code"] == "OK"));
    for daemon in &fleet {
        assert!(records.iter().any(|record| record["backend"] == daemon.name.as_str()));
    }
    assert!(proxy.metric("buildkit_lb_connections_total", &[]) > 5.0 * BUILDS as f64);
}

#[test]
fn a_bake_with_sprayed_calls_succeeds() {
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let addr = runtime.block_on(spray::start(proxy.socket()));
    let buildx = Buildx::new(&addr);
    let context = Context::new("FROM scratch\n");
    let target = |dockerfile: &str| serde_json::json!({ "context": context.path(), "dockerfile-inline": dockerfile, "output": ["type=cacheonly"] });
    let mut linked = target("FROM one\nCOPY --from=two /two /three");
    linked["contexts"] = serde_json::json!({ "one": "target:one", "two": "target:two" });
    let file = serde_json::json!({ "target": {
        "one": target("FROM scratch\nCOPY busybox /one"),
        "two": target("FROM scratch\nCOPY busybox /two"),
        "three": linked,
    }});
    context.write("bake.json", file.to_string());
    let path = context.path().join("bake.json").display().to_string();
    let allow = format!("--allow=fs.read={}", context.path().display());
    for _ in 0..10 {
        let args = ["bake", "--progress=plain", &allow, "-f", &path, "one", "two", "three"];
        let output = run(&mut buildx.command(&args));
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn a_bake_with_sprayed_calls_and_no_shared_context_succeeds() {
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let addr = runtime.block_on(spray::start(proxy.socket()));
    let buildx = Buildx::new(&addr);
    let contexts = [(); 3].map(|()| Context::new("FROM scratch\n"));
    let target = |index: usize, dockerfile: &str| serde_json::json!({ "context": contexts[index].path(), "dockerfile-inline": dockerfile, "output": ["type=cacheonly"] });
    let mut linked = target(2, "FROM one\nCOPY --from=two /two /three");
    linked["contexts"] = serde_json::json!({ "one": "target:one", "two": "target:two" });
    let file = serde_json::json!({ "target": {
        "one": target(0, "FROM scratch\nCOPY busybox /one"),
        "two": target(1, "FROM scratch\nCOPY busybox /two"),
        "three": linked,
    }});
    contexts[0].write("bake.json", file.to_string());
    for _ in 0..10 {
        let mut bake = buildx.command(&["bake", "--progress=plain", "-f"]);
        bake.arg(contexts[0].path().join("bake.json"));
        for context in &contexts {
            bake.arg(format!("--allow=fs.read={}", context.path().display()));
        }
        // The targets share no session. Only their trace shows that they belong together.
        let output = run(bake.args(["one", "two", "three"]));
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn large_contexts_and_exports_survive_it() {
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let addr = runtime.block_on(spray::start(proxy.socket()));
    let context = Context::new("FROM scratch\nCOPY large /large\n");
    let large: Vec<u8> = (0..24_u32 << 20).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    context.write("large", &large);
    let out = tempfile::tempdir().expect("a directory");
    let mut build = buildctl_build(&addr, &context);
    let output = format!("type=local,dest={}", out.path().display());
    let ended = run(build.args(["--output", &output]));
    assert!(ended.status.success(), "{}", text(&ended));
    let built = std::fs::read(out.path().join("large")).expect("exported");
    assert!(built == large, "{} of {} bytes, or other ones", built.len(), large.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_builds_in_random_order_are_never_split() {
    const BUILDS: usize = 2000;
    let fleet = FakeDaemon::fleet(5).await;
    let backend = |builder: Builder, daemon: &FakeDaemon| builder.backend(&daemon.backend());
    let proxy = fleet.iter().fold(Builder::default(), backend).policy("random").start();
    fleet.iter().for_each(FakeDaemon::finish);
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(RawClient::connect(&proxy.socket()).await);
    }
    let clients = Arc::new(clients);
    let builds = (0..8_usize).map(|worker| {
        let clients = Arc::clone(&clients);
        async move {
            let mut rng = StdRng::seed_from_u64(worker as u64);
            for number in (worker..BUILDS).step_by(8) {
                build(&clients, number, &mut rng).await;
            }
        }
    });
    let all = futures_util::future::join_all(builds);
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("nothing hangs");
    let mut arrivals: HashMap<String, Vec<(&str, &str)>> = HashMap::new();
    for daemon in &fleet {
        for call in CALLS {
            for seen in daemon.seen(call) {
                arrivals.entry(seen.id()).or_default().push((call, &daemon.name));
            }
        }
    }
    assert_eq!(arrivals.len(), BUILDS);
    for (build, mut calls) in arrivals {
        calls.sort_unstable();
        let home = calls[0].1;
        assert_eq!(calls, CALLS.map(|call| (call, home)), "{build} was split or sent twice");
    }
    let left = |gauge| proxy.metric(gauge, &[]);
    assert_eq!((left("buildkit_lb_parked_streams"), left("buildkit_lb_builds_active")), (0.0, 0.0));
}

/// One build whose four calls go out in random order over random connections.
async fn build(clients: &[RawClient], number: usize, rng: &mut StdRng) {
    let id = format!("id{number}");
    let mut order = [0, 1, 2, 3];
    order.shuffle(rng);
    let mut open = Vec::new();
    for call in order {
        let client = &clients[(number * 7 + call * 3) % clients.len()];
        open.push(match call {
            0 => {
                let mut session = client.session(&id).await;
                let _ = session.upload.send_data(bytes::Bytes::new(), true);
                session
            }
            1 => client.solve_with(&id, &id, &[("filename", "x")], &[]).await,
            2 => client.by_ref("Status", &id).await,
            _ => client.bridge("Ping", &id).await,
        });
    }
    for call in open {
        let ended = call.ended().await;
        assert_eq!(ended.code(), Some(0), "{id}: {ended:?}");
    }
}
