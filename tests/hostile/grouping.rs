//! Builds that only share a pipeline's trace are spread over the daemons. Builds that belong together stay together.

use std::{collections::BTreeSet, path::Path, process::Output};

use serde_json::{Value, json};

use crate::support::{
    buildkitd::Buildkitd,
    client::{Buildx, Context, buildctl_build, run, text},
    proxy::Proxy,
};

/// The variable that the runner of a pipeline sets for all steps.
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Runs all `commands` at once; each must succeed.
fn all_succeed(commands: Vec<std::process::Command>) {
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let start = |mut command: std::process::Command| scope.spawn(move || run(&mut command));
        let running: Vec<_> = commands.into_iter().map(start).collect();
        running.into_iter().map(|build| build.join().expect("no panic")).collect()
    });
    for output in outputs {
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// The records of all builds, without the probes of clients, which have no key.
fn builds(proxy: &Proxy) -> Vec<Value> {
    let records = proxy.records("build ended").into_iter();
    records.filter(|record| record["key_source"] != "none").collect()
}

fn backends(builds: &[Value]) -> BTreeSet<&str> {
    builds.iter().filter_map(|build| build["backend"].as_str()).collect()
}

#[test]
fn one_traceparent_for_a_pipeline_leaves_its_builds_spread() {
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("consistent-hash").start();
    let buildx = Buildx::new(&proxy.addr());
    // Each build waits until the others have begun.
    let context = Context::busybox("RUN sleep 3");
    let path = context.path().display().to_string();
    let project = |number: usize| {
        let key = format!("BUILDKIT_LB_KEY=project-{number}");
        let args = ["build", "--build-arg", &key, "--no-cache", "-o", "type=cacheonly", &path];
        let mut build = buildx.command(&args);
        build.env("TRACEPARENT", TRACEPARENT);
        build
    };
    let mut commands: Vec<_> = (0..8).map(project).collect();
    // In addition a project that has no part in the pipeline.
    let mut bystander = buildctl_build(&proxy.addr(), &context);
    bystander.args(["--opt", "buildkit-lb-key=bystander"]);
    commands.push(bystander);
    all_succeed(commands);
    let builds = builds(&proxy);
    assert_eq!(builds.len(), 9, "{builds:?}");
    assert!(builds.iter().all(|build| build["outcome"] != "pinned"), "{builds:?}");
    assert_eq!(backends(&builds).len(), 3, "{builds:?}");
}

fn target(context: &Path, dockerfile: &str) -> Value {
    json!({ "context": context, "dockerfile-inline": dockerfile, "output": ["type=cacheonly"] })
}

/// A bake of three targets with contexts of their own. One target depends on the other two.
struct Bake {
    contexts: Vec<Context>,
}

impl Bake {
    fn new(name: &str) -> Self {
        let contexts: Vec<_> =
            (0..3).map(|number| Context::busybox(&format!("RUN echo {number}"))).collect();
        let alone = |index: usize, to: &str| {
            let path: &Path = contexts[index].path();
            target(path, &format!("FROM scratch\nCOPY busybox /{name}-{to}"))
        };
        let both = format!("FROM one\nCOPY --from=two /{name}-two /{name}-both");
        let mut both = target(contexts[2].path(), &both);
        both["contexts"] = json!({ "one": "target:one", "two": "target:two" });
        let targets = json!({ "one": alone(0, "one"), "two": alone(1, "two"), "both": both });
        contexts[2].write("bake.json", json!({ "target": targets }).to_string());
        Self { contexts }
    }

    fn command(&self, buildx: &Buildx) -> std::process::Command {
        let file = self.contexts[2].path().join("bake.json");
        let mut bake = buildx.command(&["bake", "--progress=plain", "--no-cache", "-f"]);
        bake.arg(file).env("TRACEPARENT", TRACEPARENT);
        for context in &self.contexts {
            bake.arg(format!("--allow=fs.read={}", context.path().display()));
        }
        bake.args(["one", "two", "both"]);
        bake
    }
}

#[test]
fn bakes_with_linked_targets_stay_whole_beside_others_of_their_pipeline() {
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("random").start();
    let buildx = Buildx::new(&proxy.addr());
    let bakes: Vec<_> = (0..4).map(|number| Bake::new(&format!("bake{number}"))).collect();
    for _ in 0..3 {
        all_succeed(bakes.iter().map(|bake| bake.command(&buildx)).collect());
    }
    assert_eq!(proxy.metric("buildkit_lb_binding_conflicts_total", &[]), 0.0);
    let records = proxy.records("build ended");
    assert_eq!(backends(&records).len(), 3, "{records:?}");
}
