//! The kustomizations match the chart.

use std::{collections::BTreeSet, fs};

use regex::Regex;
use serde_json::Value;

use crate::support::rendered::{DEPLOY, Rendered, chart, kustomization};

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
