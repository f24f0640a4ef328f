//! The kustomizations match the chart.

use std::{collections::BTreeSet, fs};

use regex::Regex;
use serde_json::Value;

use crate::{
    containers,
    support::rendered::{DEPLOY, Rendered, chart, kustomization, with_components},
};

#[test]
fn an_overlay_is_what_the_values_file_of_its_name_gives() {
    for mode in ["pod", "deployment", "statefulset", "job", "aks"] {
        let values = format!("{DEPLOY}/chart/values-{mode}.yaml");
        let chart = chart("buildkit", &[values.into()]);
        let overlay = kustomization(&format!("{DEPLOY}/kustomize/overlays/{mode}"));
        assert_eq!(overlay.configuration(), chart.configuration(), "{mode}");
        for (kind, name) in
            [("Service", "buildkit-lb"), ("Deployment", "buildkit-lb"), ("Service", "buildkitd")]
        {
            let [ours, theirs] = [&overlay, &chart].map(|one| one.find(kind, name));
            assert_eq!(ours["spec"], theirs["spec"], "{mode}: {kind} {name}");
        }
        let kinds = |rendered: &Rendered| -> BTreeSet<String> {
            let documents = rendered.documents().into_iter();
            let name =
                |document: Value| format!("{} {}", document["kind"], document["metadata"]["name"]);
            documents
                .map(name)
                .filter(|name| !name.contains("Secret") && !name.contains("-test"))
                .collect()
        };
        assert_eq!(kinds(&overlay), kinds(&chart), "{mode}");
    }
}

#[test]
fn an_overlay_can_be_put_into_another_namespace() {
    let own = tempfile::tempdir_in(DEPLOY).expect("a directory");
    let text = "namespace: elsewhere\nresources: [../kustomize/overlays/statefulset]\n\
                components: [../kustomize/components/network-policy, ../kustomize/components/monitoring]\n";
    fs::write(own.path().join("kustomization.yaml"), text).expect("written");
    let moved = kustomization(&own.path().display().to_string());
    assert!(moved.yaml.contains("namespace: elsewhere"));
    let left = Regex::new(r#"namespace(: |=")buildkit\b"#).expect("valid");
    assert_eq!(left.find(&moved.yaml).map(|found| found.as_str()), None);
}

#[test]
fn the_components_for_tls_reach_both_sides_of_each_connection() {
    for (overlay, kind, name) in
        [("statefulset", "StatefulSet", "buildkitd"), ("pod", "Pod", "buildkitd-0")]
    {
        let rendered = with_components(overlay, &["monitoring", "backend-tls", "admin-tls"]);
        let proxy = rendered.proxy();
        for probe in ["readinessProbe", "livenessProbe"] {
            assert_eq!(proxy[probe]["httpGet"]["scheme"], "HTTPS", "{overlay}");
        }
        let daemon = rendered.find(kind, name);
        let pod = if kind == "Pod" { &daemon["spec"] } else { &daemon["spec"]["template"]["spec"] };
        let daemon = containers(pod)["buildkitd"]["args"].to_string();
        assert!(proxy["env"].to_string().contains("BUILDKIT_LB_BACKEND_TLS_DIR"));
        assert!(daemon.contains("--tlscacert=/run/secrets/tls/ca.crt"), "{overlay}: {daemon}");
        let drain = containers(pod)["drain"].clone();
        let monitor = rendered.find("ServiceMonitor", "buildkit-lb");
        let endpoint = &monitor["spec"]["endpoints"][0];
        assert_eq!(endpoint["scheme"], "https");
        let asked = endpoint["tlsConfig"]["serverName"].as_str().expect("a name");
        let args = drain["args"].to_string();
        assert!(args.contains(&format!("--proxy-tls-server-name={asked}")), "{args}");
        assert!(drain["volumeMounts"].to_string().contains("/run/secrets/admin-tls"), "{drain}");
        let volumes = pod["volumes"].as_array().expect("a list").iter();
        let keys = volumes.filter(|volume| volume["name"] == "admin-tls");
        let keys: Vec<_> = keys.map(|volume| volume["secret"]["items"][0]["key"].clone()).collect();
        assert_eq!(keys, ["ca.crt"], "the key of the admin port stays in the proxy's pod");
    }
}
