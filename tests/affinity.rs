//! Two builds of one project run on one daemon, whoever builds the project and from wherever, and the log says why.

mod support;

use std::{collections::BTreeSet, process::Command, time::Duration};

use buildkit_lb::wire::{
    self,
    control::{Attr, Exporter, SolveRequest},
};
use bytes::Bytes;
use serde_json::{Value, json};
use support::{
    buildkitd::Buildkitd,
    child::Guarded,
    client::{Buildx, Context, buildctl_build, succeed, text},
    compare::same_success,
    eventually,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
    tools::{shell, tool},
};

/// Three daemons and a proxy with the default policy.
fn hashed<'a>(fleet: impl IntoIterator<Item = &'a Buildkitd>) -> Builder {
    Proxy::in_front_of(fleet).policy("consistent-hash")
}

/// The records of builds with a key, once there are `count`.
fn keyed(proxy: &Proxy, count: usize) -> Vec<Value> {
    eventually("the builds' records", Duration::from_secs(10), || {
        let records = proxy.records("build ended");
        let keyed: Vec<_> =
            records.into_iter().filter(|record| record["key_source"] != "none").collect();
        (keyed.len() >= count).then_some(keyed)
    })
}

fn distinct<'a>(records: &'a [Value], field: &str) -> BTreeSet<&'a str> {
    records.iter().filter_map(|record| record[field].as_str()).collect()
}

/// Makes `context` a checkout of `origin`.
fn checkout(context: &Context, origin: &str) {
    let git = format!(
        "git init -q . && git remote add origin '{origin}' && git add -A && \
         git -c user.name=t -c user.email=t@example.test commit -qm one"
    );
    succeed(shell(&git, &["git"]).current_dir(context.path()));
}

#[test]
fn two_agents_with_checkouts_of_one_project_build_on_one_daemon() {
    let fleet = Buildkitd::fleet(3);
    let proxy = hashed(&fleet).start();
    let mut texts = Vec::new();
    for origin in [
        "https://contoso@dev.azure.com/contoso/Shop/_git/api",
        "git@ssh.dev.azure.com:v3/contoso/Shop/api",
        "https://token:x@DEV.azure.com/contoso/Shop/_git/api.git",
    ] {
        // A new agent has its own directory, builder and node id.
        let context = Context::busybox("RUN echo agents > /agents");
        checkout(&context, origin);
        let buildx = Buildx::new(&proxy.addr());
        let mut build = buildx.command(&["build", "--progress=plain", "-o", "type=cacheonly", "."]);
        let output = build.current_dir(context.path()).output().expect("buildx runs");
        assert!(output.status.success(), "{}", text(&output));
        texts.push(text(&output));
    }
    let records = keyed(&proxy, 3);
    assert_eq!(distinct(&records, "backend").len(), 1, "{records:?}");
    for record in &records {
        assert_eq!(record["key"], "dev.azure.com/contoso/shop/_git/api");
        assert_eq!((&record["key_source"], &record["outcome"]), (&json!("vcs"), &json!("home")));
        assert_eq!((&record["rank"], &record["load"]), (&json!(0), &json!(0)));
        assert_eq!(record["limit"], 4);
    }
    assert!(!texts[0].contains("CACHED"), "{}", texts[0]);
    assert!(texts[1].contains("CACHED") && texts[2].contains("CACHED"), "{}", texts[1]);
    let home = ["policy=\"consistent-hash\"", "outcome=\"home\"", "key_source=\"vcs\""];
    assert_eq!(proxy.metric("buildkit_lb_route_decisions_total", &home), 3.0);
    assert_eq!(proxy.metric("buildkit_lb_affinity_keys", &[]), 1.0);
    // The status lists the builds that have ended, the latest first, and without the probes of buildx.
    let status = eventually("the last build is listed", Duration::from_secs(60), || {
        let status = proxy.status();
        (status["recent"].as_array().expect("a list").len() == 3).then_some(status)
    });
    let recent = status["recent"].as_array().expect("a list");
    let of = |field: &str| recent.iter().map(|ended| ended[field].clone()).collect::<Vec<_>>();
    assert_eq!(of("warm"), [json!(true), json!(true), json!(false)], "{recent:?}");
    assert_eq!(of("code"), ["OK", "OK", "OK"]);
    let refs: Vec<_> = records.iter().rev().map(|record| record["ref"].clone()).collect();
    assert_eq!(of("ref"), refs);
    let minutes = status["pools"][0]["placements"]["home"].as_array().expect("a list");
    assert_eq!(minutes.len(), 60);
    assert_eq!(minutes.iter().filter_map(Value::as_u64).sum::<u64>(), 3);
}

#[test]
fn buildctl_and_a_replica_of_the_proxy_agree_by_the_images_name() {
    let fleet = Buildkitd::fleet(3);
    let replicas = [hashed(&fleet).start(), hashed(fleet.iter().rev()).start()];
    let mut records = Vec::new();
    for (replica, tag) in replicas.iter().zip(["17", "18"]) {
        let context = Context::busybox("RUN echo replicas > /replicas");
        let name = format!("type=image,name=registry.example/shop/api:{tag}");
        succeed(buildctl_build(&replica.addr(), &context).args(["--output", &name]));
        records.extend(keyed(replica, 1));
    }
    assert_eq!(distinct(&records, "backend").len(), 1, "{records:?}");
    assert_eq!(distinct(&records, "key"), ["shop/api"].into());
    // explain-key, which opens no connection, prints what the proxy has done.
    let mut explain = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
    explain.args(["explain-key", "--output", "type=image,name=registry.example/shop/api:19"]);
    for daemon in &fleet {
        explain.args(["--backend", &daemon.backend()]);
    }
    let home =
        format!("\n0           {}   home\n", records[0]["backend"].as_str().expect("a name"));
    let told = succeed(&mut explain);
    assert!(told.contains(&home), "{told}");
}

/// A build that runs until its guard is dropped.
fn running(proxy: &Proxy, context: &Context, key: &str) -> Guarded {
    let path = context.path().display();
    let addr = proxy.addr();
    let locals = [format!("context={path}"), format!("dockerfile={path}")];
    let hint = format!("buildkit-lb-key={key}");
    let args = ["--addr", &addr, "build", "--frontend=dockerfile.v0", "--opt", &hint];
    let args = [&args[..], &["--local", &locals[0], "--local", &locals[1], "--no-cache"]].concat();
    Guarded::start(&tool("buildctl"), &args)
}

/// The running builds of the status page, once there are `count`.
fn status(proxy: &Proxy, count: usize) -> Vec<Value> {
    eventually("the builds are listed", Duration::from_secs(20), || {
        let builds = proxy.status()["builds"].as_array().expect("a list").clone();
        (builds.len() == count).then_some(builds)
    })
}

#[test]
fn a_hot_project_spills_to_its_second_daemon_and_the_status_page_says_why() {
    let fleet = Buildkitd::fleet(3);
    let proxy = hashed(&fleet).start();
    let context = Context::busybox("RUN sleep 1000");
    let mut builds = Vec::new();
    for count in 1..=5 {
        builds.push(running(&proxy, &context, "hot"));
        status(&proxy, count);
    }
    let listed = status(&proxy, 5);
    let outcomes: Vec<_> = listed.iter().map(|build| &build["outcome"]).collect();
    assert_eq!(outcomes, ["home", "home", "home", "home", "spill"]);
    let (home, spilled) = (&listed[0], &listed[4]);
    assert_eq!(listed[3]["backend"], home["backend"]);
    assert_ne!(spilled["backend"], home["backend"]);
    assert_eq!((&spilled["home"], &spilled["home_is"]), (&home["backend"], &json!("full")));
    assert_eq!((&spilled["rank"], &spilled["load"]), (&json!(1), &json!(0)));
    for build in &listed {
        assert_eq!((&build["key"], &build["key_source"]), (&json!("hot"), &json!("hint")));
    }
    // Once its home has room again, the key is built there.
    drop(builds);
    status(&proxy, 0);
    let _build = running(&proxy, &context, "hot");
    assert_eq!(status(&proxy, 1)[0]["backend"], home["backend"]);
}

#[test]
fn a_key_stays_where_it_is_warm_unless_that_is_turned_off() {
    let fleet = Buildkitd::fleet(2);
    let directory = tempfile::tempdir().expect("a directory");
    let off = directory.path().join("off.toml");
    std::fs::write(&off, "warm-memory.enabled = false").expect("written");
    let off = off.display().to_string();
    let context = Context::busybox("RUN true");
    let build = |proxy: &Proxy, count: usize| {
        let mut build = buildctl_build(&proxy.addr(), &context);
        succeed(build.args(["--opt", "buildkit-lb-key=warm"]));
        keyed(proxy, count)[count - 1].clone()
    };
    for (args, expected) in [(vec![], "warm"), (vec!["--config", off.as_str()], "home")] {
        let proxy = hashed(&fleet).args(&args).start();
        // The key's home does not take builds, as if the home had not joined yet.
        let probe = hashed(&fleet).start();
        let home = build(&probe, 1)["backend"].as_str().expect("a name").to_owned();
        assert_eq!(proxy.control("POST", &format!("/backends/{home}/cordon")).0, 200);
        let first = build(&proxy, 1);
        let told = (&first["outcome"], &first["home"], &first["home_is"]);
        assert_eq!(told, (&json!("failover"), &json!(home), &json!("cordoned")));
        assert_eq!(proxy.control("DELETE", &format!("/backends/{home}/cordon")).0, 200);
        let second = build(&proxy, 2);
        assert_eq!(second["outcome"], expected, "{second}");
        assert_eq!(second["backend"] == first["backend"], expected == "warm");
    }
}

/// Bakes targets that each have a key, and returns their records.
fn bake(proxy: &Proxy, contexts: &[Context], link: bool) -> Vec<Value> {
    let target = |(number, context): (usize, &Context)| {
        let mut target = json!({
            "context": context.path(),
            "args": { "BUILDKIT_LB_KEY": format!("k{number}") },
            "output": ["type=cacheonly"],
        });
        if link && number > 0 {
            target["contexts"] = json!({ "base": "target:t0" });
        }
        (format!("t{number}"), target)
    };
    let targets: serde_json::Map<_, _> = contexts.iter().enumerate().map(target).collect();
    let names: Vec<_> = targets.keys().cloned().collect();
    let file = json!({ "group": { "default": { "targets": names } }, "target": targets });
    contexts[0].write("bake.json", file.to_string());
    let path = contexts[0].path().join("bake.json").display().to_string();
    let allow: Vec<_> = contexts
        .iter()
        .map(|context| format!("--allow=fs.read={}", context.path().display()))
        .collect();
    let mut args = vec!["bake", "--progress=plain", "-f", &path];
    args.extend(allow.iter().map(String::as_str));
    succeed(&mut Buildx::new(&proxy.addr()).command(&args));
    keyed(proxy, contexts.len())
}

#[test]
fn a_bake_stays_together_against_its_keys_and_spreads_only_if_told() {
    let fleet = Buildkitd::fleet(3);
    let contexts: Vec<_> =
        (0..6).map(|number| Context::busybox(&format!("RUN echo {number}"))).collect();
    let together = hashed(&fleet).start();
    for link in [false, true] {
        let records = bake(&together, &contexts, link);
        assert_eq!(distinct(&records, "backend").len(), 1, "{records:?}");
    }
    let records = together.records("build ended");
    assert!(records.iter().any(|record| record["outcome"] == "pinned"), "{records:?}");

    let spread = hashed(&fleet).args(&["--spread-bake-targets"]).start();
    let records = bake(&spread, &contexts, false);
    assert_eq!(distinct(&records, "key").len(), 6);
    assert!(distinct(&records, "backend").len() > 1, "{records:?}");
    assert!(records.iter().all(|record| record["outcome"] != "pinned"), "{records:?}");
}

/// Values that are the name of nothing; some are not even text.
fn hostile() -> Vec<Vec<u8>> {
    let mut values: Vec<Vec<u8>> = [
        "",
        " ",
        "://",
        "@",
        "#",
        ":",
        "//",
        "git@",
        "git@:",
        "https://",
        "https://@/#:",
        "..",
        "../../..",
        "C:\\",
        "%zz%00%",
        "\u{0}\u{7}\n\r\u{1b}[31m",
        "{}\"\\",
        "💥",
        "s:s:s",
        ":5000/",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    values.push(vec![0xff, 0xfe, 0x80, 0xc0]);
    values.push(b"https://\xff\xff/\xc3".to_vec());
    values.push(vec![b'a'; 1 << 20]);
    values.push(b"/../".repeat(1 << 16));
    values
}

/// A Solve in which every attribute that can give a key has this value. It has no definition and so builds nothing: a
/// daemon waits for the client's own frontend.
fn solve(build: String, value: &[u8]) -> SolveRequest {
    let attr =
        |key: &str| Attr { key: key.to_owned().into(), value: Bytes::copy_from_slice(value) };
    let names = ["vcs:source", "vcs:localdir:dockerfile", "vcs:localdir:context", "filename"];
    let hints = ["buildkit-lb-key", "build-arg:BUILDKIT_LB_KEY", "source", "target", "platform"];
    SolveRequest {
        r#ref: build.into(),
        frontend_attrs: names.into_iter().chain(hints).map(attr).collect(),
        exporters: vec![Exporter {
            r#type: "image".into(),
            attrs: vec![attr("name"), attr("ref")],
        }],
        // One operation without any content.
        definition: Bytes::from_static(&[0x0a, 0x00]),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_attributes_get_the_daemons_answer_and_no_other() {
    let fleet = Buildkitd::fleet(1);
    let proxy = hashed(&fleet).start();
    let direct = RawClient::connect(fleet[0].addr().trim_start_matches("tcp://")).await;
    let proxied = RawClient::connect(&proxy.socket()).await;
    for (number, value) in hostile().into_iter().enumerate() {
        let mut answers = Vec::new();
        for (side, client) in [("direct", &direct), ("proxied", &proxied)] {
            let message = wire::encode(&solve(format!("{side}-{number}"), &value));
            let ended = client.send("/moby.buildkit.v1.Control/Solve", &[], message).await;
            let ended = ended.ended().await;
            assert_eq!(ended.marker(), None, "{side}-{number}: {}", ended.message());
            answers.push((ended.code(), ended.message().replace(side, "")));
        }
        assert_eq!(answers[0], answers[1], "value {number}");
    }
    assert_eq!(proxy.metric("buildkit_lb_rejected_total", &[]), 0.0);
}

#[test]
fn hostile_options_of_a_real_client_never_fail_its_build() {
    let fleet = Buildkitd::fleet(2);
    let proxy = hashed(&fleet[1..]).start();
    let context = Context::busybox("RUN true");
    for value in hostile() {
        // A command line takes only text without NUL, and not all of that.
        let Ok(text) = String::from_utf8(value) else { continue };
        let text: String = text.replace('\0', "").chars().take(100_000).collect();
        let options = ["buildkit-lb-key", "vcs:source", "vcs:localdir:context"];
        same_success(&fleet[0].addr(), &proxy.addr(), |addr| {
            let mut build = buildctl_build(addr, &context);
            for option in options {
                build.args(["--opt", &format!("{option}={text}")]);
            }
            build
        });
    }
}
