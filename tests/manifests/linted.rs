//! A linter, kube-score, checks all objects. An objection is mended, or has a reason here.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;

use crate::support::{
    client::{run, text},
    rendered::{DEPLOY, Rendered, agents, charts, kustomization, kustomizations},
    tools::tool,
};

/// Objections that stand: the objection, the containers or components that it is about, and the reason.
const EXCUSES: &[(&str, &[&str], &str)] = &[
    (
        "CPU limit is not set",
        &["agent", "buildctl", "buildkit-lb", "buildkitd", "ca-bundle", "drain"],
        "A limit slows a build down while its node is idle. Requests share a busy node.",
    ),
    (
        "Memory limit is not set",
        &["buildkitd"],
        "The steps of all builds count. A limit that fits one fleet kills the builds of another.",
    ),
    (
        "Ephemeral Storage request is not set",
        &["agent", "buildctl", "buildkit-lb", "ca-bundle", "drain"],
        "These containers write next to nothing, except a checkout, whose size only its owner knows.",
    ),
    (
        "Ephemeral Storage limit is not set",
        &["agent", "buildctl", "buildkit-lb", "ca-bundle", "drain"],
        "The log counts. A proxy that logs much must not be evicted with its builds.",
    ),
    (
        "Ephemeral Storage request is not set",
        &["buildkitd"],
        "The cache is on a volume of its own, or in an emptyDir with a limit of its own.",
    ),
    (
        "Ephemeral Storage limit is not set",
        &["buildkitd"],
        "The cache is on a volume of its own, or in an emptyDir with a limit of its own.",
    ),
    (
        "ImagePullPolicy is not set to Always",
        &["agent", "buildctl", "buildkit-lb", "buildkitd", "ca-bundle", "drain"],
        "The tags are of one version each, and pods start while the registry is away.",
    ),
    (
        "The container is privileged",
        &["buildkitd"],
        "The values ask for it: nodes that refuse rootless daemons need it.",
    ),
    (
        "The pod has a container with a writable root filesystem",
        &["agent", "buildkitd"],
        "The agent updates itself and installs tools. A daemon mounts file systems where its image wants them.",
    ),
    (
        "The container is running with a low user ID",
        &["agent", "buildkitd"],
        "The user 1000 is that of the image; a daemon that is not rootless is root.",
    ),
    (
        "The container running with a low group ID",
        &["agent", "buildkitd"],
        "The group 1000 is that of the image; a daemon that is not rootless is root.",
    ),
    (
        "Container has the same readiness and liveness probe",
        &["buildkitd"],
        "The question is the same, the patience is not: a daemon is replaced after five minutes of silence.",
    ),
    (
        "Deployment few replicas",
        &["buildkitd", "proxy"],
        "Proxies do not share their builds, so there is one. KEDA decides how many daemons there are.",
    ),
    (
        "Deployment update strategy",
        &["proxy"],
        "The values for every field ask for another strategy.",
    ),
    (
        "Deployment does not have a host podAntiAffinity set",
        &["azure-agent", "buildkitd", "proxy"],
        "Pods are spread over nodes by topologySpreadConstraints. Agents may share a node.",
    ),
    (
        "StatefulSet does not have a host podAntiAffinity set",
        &["buildkitd"],
        "Pods are spread over nodes by topologySpreadConstraints.",
    ),
    (
        "No matching PodDisruptionBudget was found",
        &["buildkitd"],
        "The values turn the budget off.",
    ),
    (
        "No matching PodDisruptionBudget was found",
        &["azure-agent"],
        "An agent that is evicted finishes its job first, and the other agents take the next jobs.",
    ),
    (
        "The pod does not have a matching NetworkPolicy",
        &["azure-agent", "azure-agent-placeholder", "build", "test"],
        "A job, a build and a test reach what they are written for, and nobody connects to them.",
    ),
    (
        "The pod does not have a matching NetworkPolicy",
        &["buildkitd", "proxy"],
        "networkPolicy.enabled adds the policies. It is off until its owner names the clients.",
    ),
    (
        "The pod does not have a matching egress NetworkPolicy",
        &["buildkitd"],
        "Build steps download from places that only their authors know.",
    ),
    ("The service is of type NodePort", &["proxy"], "The values ask for it."),
];

/// The name of what an objection is about: the container, or the component that the object belongs to.
fn subject(object: &Value, comment: &Value) -> String {
    let labels = &object["object_meta"]["labels"];
    let component = &labels["app.kubernetes.io/component"];
    let name = &labels["app.kubernetes.io/name"];
    let all = [&comment["path"], component, name];
    let found = all.iter().find_map(|text| text.as_str().filter(|text| !text.is_empty()));
    found.expect("a label").to_owned()
}

/// The same document, or the Job in a ScaledJob of KEDA, which the linter does not know.
fn known(document: &str) -> String {
    let Some((head, job)) = document.split_once("\n  jobTargetRef:\n") else {
        return document.to_owned();
    };
    let metadata =
        head.split_once("\nmetadata:").and_then(|(_kind, rest)| rest.split_once("\nspec:"));
    let metadata = metadata.expect("metadata").0;
    let job: Vec<_> = job.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
    format!("apiVersion: batch/v1\nkind: Job\nmetadata:{metadata}\nspec:\n{}", job.join("\n"))
}

/// The objections to rendered objects, each with its subject.
fn objections(rendered: &Rendered) -> Vec<(String, String)> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("objects.yaml");
    let documents: Vec<_> = rendered.yaml.split("\n---\n").map(known).collect();
    fs::write(&file, documents.join("\n---\n")).expect("written");
    let mut lint = Command::new(tool("kube-score"));
    lint.args(["score", "--kubernetes-version=v1.36", "--output-format=json"]);
    // The code says only whether there are objections.
    let output = run(lint.arg(file));
    let objects: Result<Vec<Value>, _> = serde_json::from_slice(&output.stdout);
    let objects = objects.map_err(|error| (error, text(&output))).expect("JSON");
    let mut found = Vec::new();
    for object in &objects {
        for check in object["checks"].as_array().expect("checks") {
            // The best grade is 10.
            if check["skipped"] == true || check["grade"] == 10 {
                continue;
            }
            for comment in check["comments"].as_array().expect("comments") {
                let told = comment["summary"].as_str().expect("a text").to_owned();
                found.push((told, subject(object, comment)));
            }
        }
    }
    found
}

#[test]
fn every_objection_of_the_linter_has_an_answer() {
    let reasons = |objection: &str, subject: &str| {
        let fitting = EXCUSES
            .iter()
            .filter(|(told, subjects, _reason)| *told == objection && subjects.contains(&subject));
        fitting.count()
    };
    let mut answered = BTreeSet::new();
    let mut left = BTreeSet::new();
    let job = kustomization(&format!("{DEPLOY}/kustomize/job"));
    for rendered in charts().into_iter().chain(kustomizations()).chain(agents()).chain([job]) {
        for (objection, subject) in objections(&rendered) {
            match reasons(&objection, &subject) {
                1 => answered.insert((objection, subject)),
                count => {
                    left.insert(format!("{count} for {subject} ({}): {objection}", rendered.name))
                }
            };
        }
    }
    assert!(left.is_empty(), "objections without one answer: {left:#?}");
    for (objection, subjects, _reason) in EXCUSES {
        for subject in *subjects {
            let needed = answered.contains(&((*objection).to_owned(), (*subject).to_owned()));
            assert!(needed, "nothing needs the excuse of {subject}: {objection}");
        }
    }
}
