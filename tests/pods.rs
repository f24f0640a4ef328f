//! What the proxy reads from the pods of daemons and writes to them, on a real Kubernetes with the chart's rights.

mod support;

use std::{
    process::{Child, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;
use support::{
    client::{Context, buildctl_build, succeed},
    eventually,
    kubernetes::{
        Cluster,
        fleet::{Fleet, ready},
    },
    proxy::Proxy,
};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SAFE: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// The part of a pod that concerns the proxy: its name and both annotations.
type Told = (String, Option<String>, Option<String>);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

/// The pods, the oldest first.
fn pods(fleet: &Fleet) -> Vec<Told> {
    let args = ["get", "pods", "--sort-by=.metadata.creationTimestamp", "-o", "json"];
    let list: Value = serde_json::from_str(&fleet.kubectl(cluster(), &args)).expect("JSON");
    let pods = list["items"].as_array().expect("a list").iter();
    let there = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let told = there.map(|pod| {
        let annotations = &pod["metadata"]["annotations"];
        let name = text(&pod["metadata"]["name"]).expect("a name");
        (name, text(&annotations[COST]), text(&annotations[SAFE]))
    });
    told.collect()
}

/// A running build, and the context that the build reads while it runs.
fn build(proxy: &Proxy, step: &str) -> (Child, Context) {
    let context = Context::busybox(step);
    let mut build = buildctl_build(&proxy.addr(), &context);
    (build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs"), context)
}

fn told(fleet: &Fleet, expected: &[(&str, Option<&str>, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(pod, cost, safe)| (pod.to_string(), cost.map(str::to_owned), Some(safe.to_string())))
        .collect();
    eventually("the pods are told", Duration::from_secs(90), || {
        (pods(fleet) == expected).then_some(())
    });
}

#[test]
fn a_deployment_that_shrinks_ends_the_idle_pod_and_keeps_the_one_that_builds() {
    let cluster = cluster();
    let set = ["pods.deletionCost=true", "pods.safeToEvict=true"];
    let fleet = Fleet::with(cluster, "cost", "Deployment", 1, &set);
    let proxy = fleet.proxy_with("random", &["--pod-deletion-cost", "--safe-to-evict"]);
    ready(&proxy, 1);
    // Kubernetes counts the age of pods in whole seconds.
    let args = ["get", "pods", "-o", "jsonpath={.items[0].metadata.creationTimestamp}"];
    let created = fleet.kubectl(cluster, &args);
    let created = humantime::parse_rfc3339(created.trim()).expect("a time");
    eventually("another second begins", Duration::from_secs(5), || {
        created.elapsed().is_ok_and(|age| age > Duration::from_secs(1)).then_some(())
    });
    fleet.kubectl(cluster, &["scale", "deployment/buildkitd", "--replicas=2"]);
    ready(&proxy, 2);
    let both = pods(&fleet);
    let [(old, ..), (young, ..)] = &both[..] else { unreachable!("two pods: {both:?}") };
    told(&fleet, &[(old, None, "true"), (young, None, "true")]);

    // Without the annotation, Kubernetes ends the youngest pod.
    assert_eq!(proxy.control("POST", &format!("/backends/{old}/cordon")).0, 200);
    let (mut first, _context) = build(&proxy, "RUN sleep 25");
    told(&fleet, &[(old, None, "true"), (young, Some("1"), "false")]);
    let (mut second, _context_too) = build(&proxy, "RUN sleep 15");
    told(&fleet, &[(old, None, "true"), (young, Some("2"), "false")]);
    fleet.kubectl(cluster, &["scale", "deployment/buildkitd", "--replicas=1"]);
    eventually("the idle pod is ended", Duration::from_secs(30), || {
        let left = pods(&fleet);
        (left.len() == 1).then(|| assert_eq!(left[0].0, *young, "{left:?}"))
    });
    for build in [&mut first, &mut second] {
        assert!(build.wait().expect("buildctl ends").success(), "{}", proxy.process.log());
    }
    told(&fleet, &[(young, None, "true")]);
    let patches = proxy.metric("buildkit_lb_pod_patches_total", &[]);
    assert!((5.0..=12.0).contains(&patches), "only what changed is written: {patches}");

    // A proxy that ends removes its annotations; a killed proxy leaves them to its successor.
    let (mut third, _its_context) = build(&proxy, "RUN sleep 60; echo cut");
    told(&fleet, &[(young, Some("1"), "false")]);
    proxy.process.signal("TERM");
    // Two signals at the same moment could arrive as one.
    eventually("the proxy drains", Duration::from_secs(10), || {
        (!proxy.records("draining").is_empty()).then_some(())
    });
    proxy.process.signal("TERM");
    told(&fleet, &[(young, None, "true")]);
    let _ = (third.kill(), third.wait());
    let annotation = format!("{COST}=7");
    fleet.kubectl(cluster, &["annotate", "pod", young, &annotation]);
    drop(proxy);
    let proxy = fleet.proxy_with("random", &["--pod-deletion-cost", "--safe-to-evict"]);
    ready(&proxy, 1);
    told(&fleet, &[(young, None, "true")]);
}

#[test]
fn two_proxies_with_builds_on_one_pod_do_not_answer_each_other() {
    let cluster = cluster();
    let set = ["pods.deletionCost=true", "pods.safeToEvict=true"];
    let fleet = Fleet::with(cluster, "handover", "StatefulSet", 1, &set);
    let args = ["--pod-deletion-cost", "--safe-to-evict"];
    let pod = "buildkitd-0";
    let old = fleet.proxy_with("random", &args);
    ready(&old, 1);
    told(&fleet, &[(pod, None, "true")]);
    let (mut first, _context) = build(&old, "RUN sleep 90");
    let (mut second, _context_too) = build(&old, "RUN sleep 91");
    told(&fleet, &[(pod, Some("2"), "false")]);

    // The successor takes the pod for idle. The proxy that knows of the build writes its number again.
    let new = fleet.another_proxy("random", &args);
    ready(&new, 1);
    let patches = |proxy: &Proxy| proxy.metric("buildkit_lb_pod_patches_total", &[]);
    eventually("the successor has written", Duration::from_secs(10), || {
        (patches(&new) == 1.0).then_some(())
    });
    told(&fleet, &[(pod, Some("2"), "false")]);

    // Both proxies have builds. Each writes its own number, and neither reacts to the other's.
    let (mut third, _context_three) = build(&new, "RUN sleep 92");
    told(&fleet, &[(pod, Some("1"), "false")]);
    let before = patches(&old) + patches(&new);
    told(&fleet, &[(pod, Some("2"), "false")]);
    let written = patches(&old) + patches(&new) - before;
    assert!(written <= 2.0, "{written} patches within half a minute");
    for build in [&mut first, &mut second, &mut third] {
        let _ = (build.kill(), build.wait());
    }
    told(&fleet, &[(pod, None, "true")]);
}

#[test]
fn what_pods_say_is_in_the_status_and_in_the_log() {
    let cluster = cluster();
    let fleet = Fleet::with(cluster, "details", "StatefulSet", 1, &["pods.details=true"]);
    let proxy = fleet.proxy_with("random", &["--pod-details"]);
    ready(&proxy, 1);
    let backend = |proxy: &Proxy| proxy.status()["backends"][0].clone();
    let known = eventually("the pod's labels are known", Duration::from_secs(20), || {
        Some(backend(&proxy)).filter(|backend| backend["version"] == "v0.32.2")
    });
    assert_eq!(known["node"], "node-a");
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo labels")));
    let record = eventually("the build's record", Duration::from_secs(10), || {
        proxy.records("build ended").into_iter().find(|record| record["version"] == "v0.32.2")
    });
    assert_eq!(record["node"], "node-a");
    // The proxy follows a label that changes, and a label that is removed.
    fleet.kubectl(cluster, &["label", "pod", "buildkitd-0", "kubernetes.io/arch=arm64"]);
    fleet.kubectl(cluster, &["label", "pod", "buildkitd-0", "app.kubernetes.io/version-"]);
    eventually("the change is followed", Duration::from_secs(20), || {
        let backend = backend(&proxy);
        (backend["architecture"] == "arm64" && backend["version"].is_null()).then_some(())
    });
}

#[test]
fn without_the_rights_on_pods_builds_go_on_and_each_right_is_named_once() {
    let cluster = cluster();
    let fleet = Fleet::new(cluster, "no-pods", "StatefulSet", 1);
    let args = ["--pod-details", "--pod-deletion-cost", "--safe-to-evict"];
    let proxy = fleet.proxy_with("random", &args);
    ready(&proxy, 1);
    for verb in ["list", "patch"] {
        eventually("it has been tried again", Duration::from_secs(30), || {
            let labels = [&format!("verb=\"{verb}\"")[..], "reason=\"forbidden\""];
            (proxy.metric("buildkit_lb_pod_errors_total", &labels) >= 3.0).then_some(())
        });
    }
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo anyway")));
    for (message, error) in [
        (
            "cannot read pod labels",
            "cannot list pods in namespace no-pods: grant verbs get, list, watch",
        ),
        ("cannot annotate pods", "cannot patch pods in namespace no-pods: grant verb patch"),
    ] {
        let records = proxy.records(message);
        assert_eq!(records.len(), 1, "{records:?}");
        assert_eq!(records[0]["error"], error);
    }
    let (code, told) = proxy.admin("GET", "/readyz");
    assert!(code == 200 && !told.contains("since"), "{told}");
}
