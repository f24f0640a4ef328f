//! What a release consists of: its pools, pods, images and further objects.

use std::fs;

use serde_json::Value;

use crate::{
    containers,
    support::rendered::{
        DEPLOY, Rendered, agents, chart, chart_set, kustomization, kustomizations,
    },
};

#[test]
fn a_pool_of_the_chart_has_its_port_and_its_rights() {
    let everything = chart("pools", &[format!("{DEPLOY}/chart/ci/everything-values.yaml").into()]);
    let ports = everything.find("Service", "buildkit-lb")["spec"]["ports"].clone();
    let port = ports.as_array().expect("a list").iter().find(|port| port["name"] == "arm64");
    assert_eq!(port.expect("the pool's port")["targetPort"], 1235);
    let open = everything.proxy()["ports"].to_string();
    assert!(open.contains("1235") && open.contains("1236"), "{open}");
    let toml: toml::Table = everything.configuration().parse().expect("TOML");
    assert_eq!(toml["otlp-endpoint"].as_str(), Some("http://otel-collector.observability:4317"));
    assert_eq!(toml["backend-metrics-port"].as_str(), Some("6060"));
    let variables = everything.proxy()["env"].to_string();
    assert!(variables.contains("k8s.pod.name=$(POD_NAME)"), "{variables}");
    let pools = toml["pool"].as_array().expect("a list");
    let names: Vec<_> = pools.iter().filter_map(|pool| pool["name"].as_str()).collect();
    assert_eq!(names, ["default", "arm64", "big"]);
    let allowed = |document: &Value| {
        document["kind"] == "Role" && document["metadata"]["namespace"] == "kube-public"
    };
    assert!(everything.documents().iter().any(allowed), "slices of the pool can be read");
    // Daemons that a release makes for another release's pool ask the proxies of that other release.
    let daemons = chart("daemons", &[format!("{DEPLOY}/chart/ci/daemons-values.yaml").into()]);
    let daemons = daemons.find("StatefulSet", "buildkitd-arm64").to_string();
    let asked = "--proxy=buildkit-lb-admin.buildkit.svc.cluster.local.:9090";
    assert!(daemons.contains(asked), "{daemons}");
}

#[test]
fn a_release_without_a_proxy_has_nothing_that_leads_to_one() {
    let daemons = [format!("{DEPLOY}/chart/ci/daemons-values.yaml").into()];
    let monitored = [
        "metrics.podMonitor.enabled=true",
        "metrics.prometheusRule.enabled=true",
        "networkPolicy.enabled=true",
    ];
    for document in chart_set("daemons", &daemons, &monitored).documents() {
        let about = &document["metadata"]["labels"]["app.kubernetes.io/component"];
        let kind = document["kind"].as_str().expect("a kind");
        let fits = match kind {
            "Service" | "PodDisruptionBudget" => about == "buildkitd",
            "Pod" | "ServiceMonitor" | "PodMonitor" | "PrometheusRule" => false,
            _ => true,
        };
        assert!(fits, "a {kind} for {about}");
    }
}

#[test]
fn further_objects_and_containers_are_as_they_are_given() {
    let everything =
        chart("everything", &[format!("{DEPLOY}/chart/ci/everything-values.yaml").into()]);
    assert_eq!(everything.find("ConfigMap", "extra")["data"]["namespace"], "everything");
    everything.find("ConfigMap", "extra-text");
    let proxy = everything.find("Deployment", "buildkit-lb");
    let daemons = everything.find("StatefulSet", "daemons");
    assert_eq!(proxy["spec"]["strategy"]["type"], "Recreate");
    for object in [proxy, daemons] {
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(pod["hostUsers"], false);
        assert_eq!(pod["runtimeClassName"], "gvisor");
        assert!(containers(pod).contains_key("beside"));
        let before = pod["initContainers"].as_array().and_then(|all| all.last());
        assert_eq!(before.expect("a container")["name"], "before");
    }
}

#[test]
fn builds_wait_as_the_values_say_and_else_as_the_proxy_does_by_itself() {
    let settings = |rendered: &Rendered, name: &str| -> Vec<String> {
        let map = rendered.find("ConfigMap", name);
        let text = map["data"]["buildkit-lb.toml"].as_str().expect("text").to_owned();
        let keys = ["max-builds", "max-wait", "affinity-wait", "queue-progress"];
        let is_one = |line: &&str| keys.iter().any(|key| line.starts_with(key));
        text.lines().filter(is_one).map(str::to_owned).collect()
    };
    let everything =
        chart("everything", &[format!("{DEPLOY}/chart/ci/everything-values.yaml").into()]);
    let mut set = settings(&everything, "buildkit-lb");
    set.sort();
    let expected = [
        "affinity-wait = \"30s\"",
        "max-builds = 4",
        "max-wait = \"20m\"",
        "max-waiting = 2000",
        "max-waiting-per-client = 500",
        "queue-progress = false",
    ];
    assert_eq!(set, expected);
    assert_eq!(settings(&chart("plain", &[]), "buildkit-lb"), [""; 0]);
}

#[test]
fn pods_keep_to_nodes_that_can_run_them() {
    let set = ["image.architecture=amd64"];
    let everything = [format!("{DEPLOY}/chart/ci/everything-values.yaml").into()];
    for rendered in [chart_set("amd64", &[], &set), chart("everything", &everything)] {
        for document in rendered.documents() {
            let pod = match document["kind"].as_str() {
                Some("Pod") => &document["spec"],
                Some("Deployment" | "StatefulSet") => &document["spec"]["template"]["spec"],
                _ => continue,
            };
            let nodes = &pod["nodeSelector"];
            assert_eq!(nodes["kubernetes.io/os"], "linux", "{document}");
            // The image of buildctl exists for every architecture.
            let ours = document["kind"] != "Pod";
            assert_eq!(nodes["kubernetes.io/arch"] == "amd64", ours, "{document}");
            assert!(pod["containers"][0]["resources"]["limits"]["memory"].is_string() || ours);
        }
    }
    let daemons = chart_set("labels", &[], &set).find("StatefulSet", "buildkitd");
    assert_eq!(daemons["spec"]["template"]["metadata"]["labels"]["kubernetes.io/arch"], "amd64");
    let job = kustomization(&format!("{DEPLOY}/kustomize/job"));
    for rendered in kustomizations().into_iter().chain(agents()).chain([job]) {
        assert!(rendered.yaml.contains("kubernetes.io/os: linux"), "{}", rendered.name);
    }
}

#[test]
fn the_proxys_image_has_a_registry() {
    let whole = ["image.registry=", "image.repository=registry.example/team/proxy"];
    let image = chart_set("whole", &[], &whole).proxy()["image"].clone();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image, format!("registry.example/team/proxy:{version}"));
    // A kustomization can rename the image as the docs describe.
    let own = tempfile::tempdir_in(DEPLOY).expect("a directory");
    let text = "resources: [../kustomize/overlays/statefulset]\n\
                images: [{name: registry.example/buildkit-lb, newName: registry.example/own}]\n";
    fs::write(own.path().join("kustomization.yaml"), text).expect("written");
    let renamed = kustomization(&own.path().display().to_string());
    assert_eq!(renamed.proxy()["image"], format!("registry.example/own:{version}"));
    assert!(!renamed.yaml.contains("/buildkit-lb:"), "the daemons' container has it, too");
}
