//! What `deploy/` renders: the chart with its values files, the kustomizations, the agents' manifests.

use std::{fs, path::PathBuf, process::Command};

use regex::Regex;
use serde_json::Value;

use super::{
    client::{run, text},
    tools::tool,
};

pub(crate) const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// One rendering: its name, and its documents as YAML.
#[derive(Debug)]
pub(crate) struct Rendered {
    pub(crate) name: String,
    pub(crate) yaml: String,
}

impl Rendered {
    /// The documents that are not empty.
    pub(crate) fn documents(&self) -> Vec<Value> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&self.yaml).expect(&self.name);
        documents.into_iter().filter(Value::is_object).collect()
    }

    /// The only object of that kind and name.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Value {
        let wanted = |document: &Value| {
            document["kind"] == kind && document["metadata"]["name"].as_str() == Some(name)
        };
        let found = self.documents().into_iter().find(wanted);
        assert!(found.is_some(), "{}: no {kind} {name}", self.name);
        found.unwrap_or_default()
    }

    /// The only container of the proxy's Deployment, whatever its name is.
    pub(crate) fn proxy(&self) -> Value {
        let proxies = self.documents().into_iter().filter_map(|document| {
            let container = &document["spec"]["template"]["spec"]["containers"][0];
            (container["name"] == "buildkit-lb").then(|| container.clone())
        });
        let proxies: Vec<_> = proxies.collect();
        assert_eq!(proxies.len(), 1, "{}", self.name);
        proxies[0].clone()
    }

    /// The proxy's configuration file.
    pub(crate) fn configuration(&self) -> String {
        let files = self.documents();
        let file = files.iter().find_map(|document| document["data"]["buildkit-lb.toml"].as_str());
        file.expect(&self.name).to_owned()
    }
}

/// Renders the chart with the values of `files` for a namespace of that name.
pub(crate) fn chart(namespace: &str, files: &[PathBuf]) -> Rendered {
    chart_set(namespace, files, &[])
}

/// The same with the values `set` as well, each as `KEY=VALUE`.
pub(crate) fn chart_set(namespace: &str, files: &[PathBuf], set: &[&str]) -> Rendered {
    let mut helm = Command::new(tool("helm"));
    helm.args(["template", "buildkit-lb"]).arg(format!("{DEPLOY}/chart"));
    helm.args(["--kube-version", "1.36.3", "--namespace", namespace]);
    helm.args(["--set", "image.registry=registry.example"]);
    for file in files {
        helm.arg("--values").arg(file);
    }
    for value in set {
        helm.arg("--set").arg(value);
    }
    let output = run(&mut helm);
    assert!(output.status.success(), "{namespace}: {}", text(&output));
    Rendered { name: namespace.to_owned(), yaml: String::from_utf8_lossy(&output.stdout).into() }
}

/// Renders the chart with each values file of the repository, and without one.
pub(crate) fn charts() -> Vec<Rendered> {
    let in_chart = |name: &str| PathBuf::from(format!("{DEPLOY}/chart/{name}"));
    let azure = [in_chart("values-aks.yaml"), format!("{DEPLOY}/azure/values.yaml").into()];
    let mut rendered = vec![chart("default-values", &[]), chart("azure", &azure)];
    for directory in [in_chart(""), in_chart("ci")] {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let is_values = path.extension().is_some_and(|extension| extension == "yaml")
                && (name.starts_with("values-") || name.ends_with("-values"));
            if is_values {
                rendered.push(chart(&name, &[path]));
            }
        }
    }
    assert!(rendered.len() >= 10, "{}", rendered.len());
    rendered
}

/// Renders a kustomization.
pub(crate) fn kustomization(path: &str) -> Rendered {
    let output = run(Command::new(tool("kubectl")).arg("kustomize").arg(path));
    assert!(output.status.success(), "{path}: {}", text(&output));
    Rendered { name: path.to_owned(), yaml: String::from_utf8_lossy(&output.stdout).into() }
}

/// Every overlay alone, and two with all components: one whose daemons have a template, and one with bare pods.
pub(crate) fn kustomizations() -> Vec<Rendered> {
    let overlays = fs::read_dir(format!("{DEPLOY}/kustomize/overlays")).expect("a directory");
    let overlays = overlays.map(|entry| entry.expect("an entry").path().display().to_string());
    let mut rendered: Vec<_> = overlays.map(|overlay| kustomization(&overlay)).collect();
    assert!(rendered.len() >= 4, "{}", rendered.len());
    let all = ["network-policy", "monitoring", "tls", "client-tokens", "backend-tls", "admin-tls"];
    rendered.extend(["statefulset", "pod"].map(|overlay| with_components(overlay, &all)));
    rendered
}

/// An overlay with components.
pub(crate) fn with_components(overlay: &str, components: &[&str]) -> Rendered {
    let own = tempfile::tempdir_in(DEPLOY).expect("a directory");
    let components: Vec<_> =
        components.iter().map(|name| format!("../kustomize/components/{name}")).collect();
    let text =
        format!("resources: [../kustomize/overlays/{overlay}]\ncomponents: {components:?}\n");
    fs::write(own.path().join("kustomization.yaml"), text).expect("written");
    kustomization(&own.path().display().to_string())
}

/// The agents of Azure Pipelines.
pub(crate) fn agents() -> [Rendered; 3] {
    ["agent-deployment.yaml", "agent-placeholder.yaml", "agent-scaledjob.yaml"].map(|file| {
        let name = format!("{DEPLOY}/azure/manifests/{file}");
        let yaml = fs::read_to_string(&name).expect("a file");
        Rendered { name, yaml }
    })
}

/// The same without a personal access token, as the comments in the manifests describe.
pub(crate) fn with_identity(agents: &Rendered) -> Rendered {
    let comment = Regex::new(r"^( *)# (.*)$").expect("valid");
    let (mut wanted, mut unwanted) = (false, false);
    let mut yaml = String::new();
    for line in agents.yaml.lines() {
        let text = comment.captures(line);
        if line.ends_with("ith workload identity:") {
            (wanted, unwanted) = (line.contains("# With"), line.contains("# Not with"));
        } else if let Some(text) = text.filter(|_| wanted) {
            yaml += &format!("{}{}\n", &text[1], &text[2]);
        } else if !unwanted {
            wanted = false;
            yaml += &format!("{line}\n");
        }
    }
    Rendered { name: format!("{} with an identity", agents.name), yaml }
}
