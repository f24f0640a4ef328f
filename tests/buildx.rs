//! docker buildx with the remote driver works through the proxy as it does at one daemon.

mod support;

use std::{collections::BTreeSet, sync::OnceLock};

use serde_json::{Value, json};
use support::{
    buildkitd::Buildkitd,
    client::{Buildx, Context, run, succeed, text},
    compare::same_success,
    proxy::Proxy,
    tools::shell,
};

#[derive(Debug)]
struct Setup {
    direct: Buildx,
    proxied: Buildx,
    proxy: Proxy,
    _fleet: Vec<Buildkitd>,
}

fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| {
        let fleet = Buildkitd::fleet(4);
        let proxy = Proxy::in_front_of(&fleet[1..]).policy("random").start();
        let direct = Buildx::new(&fleet[0].addr());
        let proxied = Buildx::new(&proxy.addr());
        Setup { direct, proxied, proxy, _fleet: fleet }
    })
}

/// Runs the same buildx command on both sides. Both must succeed with the same result.
fn same(args: impl Fn(&Buildx) -> Vec<String>) {
    let setup = setup();
    same_success("direct", "proxied", |side| {
        let buildx = if side == "direct" { &setup.direct } else { &setup.proxied };
        let args = args(buildx);
        buildx.command(&args.iter().map(String::as_str).collect::<Vec<_>>())
    });
}

fn metadata(buildx: &Buildx, name: &str) -> Value {
    let text = std::fs::read_to_string(buildx.file(name)).expect("a metadata file");
    serde_json::from_str(&text).expect("JSON")
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
}

/// Runs a bake of `targets` on both sides.
fn bake(context: &Context, targets: &Value) {
    let file = json!({ "group": { "default": { "targets": targets.as_object().expect("targets").keys().collect::<Vec<_>>() } }, "target": targets });
    context.write("bake.json", file.to_string());
    let path = context.path().join("bake.json").display().to_string();
    let files = format!("--allow=fs.read={}", context.path().display());
    same(|_| ["bake", "--progress=plain", &files, "-f", &path].map(str::to_owned).to_vec());
}

fn target(context: &Context, dockerfile: &str) -> Value {
    json!({ "context": context.path(), "dockerfile-inline": dockerfile, "output": ["type=cacheonly"] })
}

#[test]
fn a_metadata_file_tells_of_the_build() {
    let context = Context::busybox("RUN echo metadata > /metadata");
    let path = context.path().display().to_string();
    same(|buildx| {
        let file = buildx.file("meta.json").display().to_string();
        ["build", "--progress=plain", "--metadata-file", &file, "-o", "type=cacheonly", &path]
            .map(str::to_owned)
            .to_vec()
    });
    let setup = setup();
    let [direct, proxied] = [&setup.direct, &setup.proxied].map(|b| metadata(b, "meta.json"));
    assert_eq!(keys(&direct), keys(&proxied));
    assert_eq!(keys(&direct["buildx.build.provenance"]), keys(&proxied["buildx.build.provenance"]));
}

#[test]
fn linked_targets_with_a_shared_context_build_on_one_daemon() {
    let context = Context::busybox("RUN echo bake > /bake");
    let shared = |name: &str| target(&context, &format!("FROM scratch\nCOPY busybox /bin/{name}"));
    let mut linked = target(&context, "FROM base\nCOPY busybox /linked");
    linked["contexts"] = json!({ "base": "target:b" });
    for _ in 0..5 {
        bake(&context, &json!({ "a": shared("a"), "b": shared("b"), "c": linked }));
    }
}

#[test]
fn a_target_may_be_linked_to_two_unrelated_ones() {
    let contexts = [(); 3].map(|()| Context::busybox("RUN echo two"));
    let alone = |index: usize, name: &str| {
        target(&contexts[index], &format!("FROM scratch\nCOPY busybox /bin/{name}"))
    };
    let mut both = target(&contexts[2], "FROM one\nCOPY --from=two /bin/two /bin/both");
    both["contexts"] = json!({ "one": "target:one", "two": "target:two" });
    let allow: Vec<_> = contexts
        .iter()
        .map(|context| format!("--allow=fs.read={}", context.path().display()))
        .collect();
    let file =
        json!({ "target": { "one": alone(0, "one"), "two": alone(1, "two"), "both": both } });
    contexts[2].write("bake.json", file.to_string());
    let path = contexts[2].path().join("bake.json").display().to_string();
    for _ in 0..5 {
        same(|_| {
            let mut args = vec!["bake".to_owned(), "--progress=plain".to_owned()];
            args.extend(allow.iter().cloned());
            args.extend(["-f", &path, "one", "two", "both"].map(str::to_owned));
            args
        });
    }
}

#[test]
fn twenty_unrelated_targets_are_baked_at_once() {
    let context = Context::busybox("RUN true");
    let targets = (0..20).map(|number| {
        (format!("t{number}"), target(&context, &format!("FROM scratch\nCOPY busybox /{number}")))
    });
    bake(&context, &Value::Object(targets.collect()));
}

#[test]
fn history_of_a_given_build_is_found() {
    let setup = setup();
    let marker = "history-marker-4711";
    let context = Context::busybox(&format!("RUN echo {marker}"));
    let mut builds = Vec::new();
    for side in [&setup.direct, &setup.proxied] {
        let file = side.file("history.json").display().to_string();
        let path = context.path().display().to_string();
        for _ in 0..3 {
            let args =
                ["build", "--no-cache", "--metadata-file", &file, "-o", "type=cacheonly", &path];
            succeed(&mut side.command(&args));
        }
        let full =
            metadata(side, "history.json")["buildx.build.ref"].as_str().expect("a ref").to_owned();
        let build = full.rsplit('/').next().expect("a ref").to_owned();
        let list = succeed(&mut side.command(&["history", "ls", "--no-trunc"]));
        assert!(list.contains(&build), "{build} is missing in:\n{list}");
        let logs = run(&mut side.command(&["history", "logs", "--progress=plain", &build]));
        assert!(logs.status.success() && text(&logs).contains(marker), "{}", text(&logs));
        let inspect = succeed(&mut side.command(&["history", "inspect", "--format=json", &build]));
        builds.push(serde_json::from_str::<Value>(&inspect).expect("JSON"));
    }
    assert_eq!(keys(&builds[0]), keys(&builds[1]));
    assert_eq!(builds[0]["NumCompletedSteps"], builds[1]["NumCompletedSteps"]);
}

#[test]
fn attachments_of_a_build_are_read_from_the_daemon_that_has_them() {
    let setup = setup();
    let context = Context::busybox("RUN echo attached");
    let file = setup.proxied.file("attachments.json").display().to_string();
    let path = context.path().display().to_string();
    let args = ["build", "--metadata-file", &file, "-o", "type=cacheonly", &path];
    succeed(&mut setup.proxied.command(&args));
    let full = metadata(&setup.proxied, "attachments.json")["buildx.build.ref"]
        .as_str()
        .expect("a ref")
        .to_owned();
    let build = full.rsplit('/').next().expect("a ref");
    let args = ["history", "inspect", "attachment", "--type=https://slsa.dev/provenance/v1", build];
    let provenance = succeed(&mut setup.proxied.command(&args));
    assert!(serde_json::from_str::<Value>(&provenance).is_ok(), "{provenance}");
}

#[test]
fn disk_usage_and_inspect_answer() {
    let setup = setup();
    let usage = succeed(&mut setup.proxied.command(&["du"]));
    assert!(usage.contains("Total:"), "{usage}");
    let mut inspect = setup.proxied.command(&["inspect", "--bootstrap"]);
    assert!(succeed(&mut inspect).contains("running"));
    assert!(setup.proxy.metric("grpc_server_started_total", &["Info"]) >= 1.0);
}

#[test]
fn two_clones_of_a_repository_share_a_key() {
    let setup = setup();
    let context = Context::busybox("RUN true");
    let path = context.path();
    let git = "git init -q . && git remote add origin https://user@Example.test/team/app.git && \
               git add -A && git -c user.name=t -c user.email=t@example.test commit -qm one";
    succeed(shell(git, &["git"]).current_dir(path));
    let mut build = setup.proxied.command(&["build", "-o", "type=cacheonly", "."]);
    succeed(build.current_dir(path));
    let records = setup.proxy.records("build ended");
    let record = records.iter().find(|record| record["key_source"] == "vcs");
    assert_eq!(record.expect("a build with a key")["key"], "example.test/team/app");
}
