//! Pods have time to end, and daemons wait for their builds.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    containers,
    support::{
        client::{run, text},
        eventually,
        rendered::{agents, chart, chart_set, charts, kustomizations},
        tools::tool,
    },
};

/// The running child processes of a process.
fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn a_daemon_of_the_chart_ends_when_its_drain_says_so() {
    let rendered = chart("team-a", &[]);
    let daemons = rendered.find("StatefulSet", "buildkitd");
    let pod = &daemons["spec"]["template"]["spec"];
    let hook = &containers(pod)["buildkitd"]["lifecycle"]["preStop"]["exec"]["command"];
    let script = hook[2].as_str().expect("a script");
    let directory = tempfile::tempdir().expect("a directory");
    let script = script.replace("/run/buildkit-lb", &directory.path().display().to_string());
    let mut shell = Command::new(tool("busybox"));
    let mut hook = shell.args(["sh", "-c", &script]).spawn().expect("busybox runs");
    // The hook sleeps between two checks, so a second sleep means that one check has found nothing.
    let mut sleeps = BTreeSet::new();
    eventually("it waits for the word", Duration::from_secs(20), || {
        sleeps.extend(children(hook.id()));
        (sleeps.len() > 1).then_some(())
    });
    assert!(hook.try_wait().expect("a child").is_none(), "it waits");
    fs::write(directory.path().join("drained"), "").expect("written");
    let ended =
        eventually("the hook ends", Duration::from_secs(20), || hook.try_wait().expect("a child"));
    assert!(ended.success());
    let given_up = script.replace("3615", "1");
    assert_ne!(given_up, script);
    fs::remove_file(directory.path().join("drained")).expect("removed");
    let output = run(Command::new(tool("busybox")).args(["sh", "-c", &given_up]));
    assert!(output.status.success(), "no word must not hold the pod: {}", text(&output));
    let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a number");
    assert!(grace > 3615, "{grace}");
}

#[test]
fn grace_periods_are_longer_than_drains() {
    for rendered in charts().into_iter().chain(kustomizations()) {
        let toml: toml::Table = rendered.configuration().parse().expect("TOML");
        let seconds = |key: &str| {
            let text = toml.get(key).map_or(Some("0s"), toml::Value::as_str).expect("text");
            humantime::parse_duration(text).expect("a duration").as_secs()
        };
        assert!(toml.contains_key("drain-timeout"), "{}", rendered.name);
        let drain = seconds("drain-delay") + seconds("drain-timeout");
        for document in rendered.documents() {
            let pod = &document["spec"]["template"]["spec"];
            if pod["containers"][0]["name"] == "buildkit-lb" {
                let grace = pod["terminationGracePeriodSeconds"].as_u64().expect("a number");
                assert!(grace > drain, "{}", rendered.name);
            }
        }
    }
}

#[test]
fn the_roll_out_of_daemons_is_as_it_is_set() {
    let set = ["buildkitd.updateStrategy.type=OnDelete"];
    let daemons = chart_set("by-hand", &[], &set).find("StatefulSet", "buildkitd");
    assert_eq!(daemons["spec"]["updateStrategy"], serde_json::json!({"type": "OnDelete"}));
    let set = ["buildkitd.mode=deployment", "buildkitd.updateStrategy.type=Recreate"];
    let daemons = chart_set("at-once", &[], &set).find("Deployment", "buildkitd");
    assert_eq!(daemons["spec"]["strategy"], serde_json::json!({"type": "Recreate"}));
}

#[test]
fn no_autoscaler_takes_the_node_of_a_proxy_or_an_agent() {
    let annotated = |pod: &Value, name: &str| {
        let annotations = &pod["metadata"]["annotations"];
        let evicted = &annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"];
        let disrupted = &annotations["karpenter.sh/do-not-disrupt"];
        assert!(evicted == "false" && disrupted == "true", "{name}: {annotations}");
    };
    for rendered in charts().into_iter().chain(kustomizations()) {
        for document in rendered.documents() {
            let pod = &document["spec"]["template"];
            if pod["spec"]["containers"][0]["name"] == "buildkit-lb" {
                annotated(pod, &rendered.name);
            }
        }
    }
    let [always_there, _placeholder, with_a_job] = agents();
    let deployment = always_there.find("Deployment", "azure-agent");
    annotated(&deployment["spec"]["template"], &always_there.name);
    let job = with_a_job.find("ScaledJob", "azure-agent");
    annotated(&job["spec"]["jobTargetRef"]["template"], &with_a_job.name);
}
