//! The real API server accepts all objects, and the proxy accepts its configuration.

use std::{fs, process::Command};

use crate::{
    AGENTS,
    support::{
        certificates::{Authority, Request},
        client::{run, text},
        kubernetes::Cluster,
        rendered::{
            DEPLOY, Rendered, agents, charts, kustomization, kustomizations, with_identity,
        },
        tools::definitions,
    },
};

/// The Secrets that the proxy's container mounts.
struct Secrets(tempfile::TempDir);

impl Secrets {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("token"), "a".repeat(64)).expect("written");
        let tokens = format!("{} api\n", "0".repeat(64));
        fs::write(directory.path().join("tokens"), tokens).expect("written");
        let authority = Authority::new("of the tests");
        let (certificate, key) = authority.sign(&Request::SERVER);
        let files = [("tls.crt", &*certificate), ("tls.key", &key), ("ca.crt", authority.pem())];
        for (name, content) in files {
            fs::write(directory.path().join(name), content).expect("written");
        }
        Self(directory)
    }

    /// The same text with files of this machine.
    fn locate(&self, text: &str) -> String {
        let here = self.0.path().display().to_string();
        ["buildkit-lb", "backend-tls", "admin-tls", "client-tokens", "tls"]
            .map(|secret| format!("/run/secrets/{secret}"))
            .iter()
            .fold(text.to_owned(), |text, path| text.replace(path, &here))
    }
}

/// The kinds of KEDA, the Prometheus operator and cert-manager as these projects define them, and Azure's copies of
/// the monitors, which differ in their group. Azure has no copy of PrometheusRule.
pub(super) fn further_kinds() -> Vec<(String, String)> {
    let mut kinds = Vec::new();
    for entry in fs::read_dir(definitions()).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.display().to_string();
        let definition = fs::read_to_string(path).expect("a file");
        if name.contains("monitoring.coreos.com") && !name.contains("prometheusrules") {
            let azure = definition.replace("monitoring.coreos.com", "azmonitoring.coreos.com");
            kinds.push((format!("Azure's {name}"), azure));
        }
        kinds.push((name, definition));
    }
    assert_eq!(kinds.len(), 3 + 3 + 2 + 3);
    kinds
}

#[test]
fn the_api_server_takes_everything_without_an_unknown_field() {
    let cluster = Cluster::bare();
    let server = cluster.server();
    let must = |args: &[&str], input: &str, what: &str| {
        let output = server.feed(args, input);
        assert!(output.status.success(), "{what}: {}", text(&output));
    };
    for (name, definition) in further_kinds() {
        must(&["create", "--filename", "-"], &definition, &name);
    }
    must(
        &["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"],
        "",
        "the definitions are in force",
    );
    let apply = ["apply", "--server-side", "--validate=strict", "--filename", "-"];
    for Rendered { name, yaml } in charts() {
        must(&["create", "namespace", &name], "", &name);
        // The namespace is a default. With --namespace, kubectl would refuse the Role for another namespace.
        must(&["config", "set-context", "--current", "--namespace", &name], "", &name);
        must(&apply, &yaml, &name);
    }
    must(&["create", "namespace", "buildkit"], "", "buildkit");
    let dry_in = |namespace: &'static str| {
        [&apply[..], &["--namespace", namespace, "--dry-run=server"]].concat()
    };
    let dry = dry_in("buildkit");
    let mut plain = kustomizations();
    plain.push(kustomization(&format!("{DEPLOY}/kustomize/job")));
    for Rendered { name, yaml } in plain {
        must(&dry, &yaml, &name);
    }
    must(&["create", "namespace", AGENTS], "", AGENTS);
    for Rendered { name, yaml } in
        agents().into_iter().chain(agents().map(|agents| with_identity(&agents)))
    {
        must(&dry_in(AGENTS), &yaml, &name);
    }
    for namespace in ["cert-manager", "team-a"] {
        must(&["create", "namespace", namespace], "", namespace);
    }
    for file in ["issuers", "client"] {
        let yaml =
            fs::read_to_string(format!("{DEPLOY}/cert-manager/{file}.yaml")).expect("a file");
        must(&[&apply[..], &["--dry-run=server"]].concat(), &yaml, file);
    }
    for unknown in [
        "{apiVersion: cert-manager.io/v1, kind: Certificate, metadata: {name: a}, \
          spec: {secretName: a, issuerRef: {name: a}, x: 1}}",
        "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, x: 1}",
        "{apiVersion: keda.sh/v1alpha1, kind: ScaledJob, metadata: {name: a}, \
          spec: {jobTargetRef: {template: {spec: {containers: [{name: a}]}}}, triggers: [], x: 1}}",
        "{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: a}, \
          spec: {scaleTargetRef: {name: a}, triggers: [], x: 1}}",
        "{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {name: a}, \
          spec: {selector: {}, podMetricsEndpoints: [], x: 1}}",
    ] {
        let told = text(&server.feed(&dry, unknown));
        let refused = told.contains("x: field not declared in schema");
        assert!(refused || told.contains("unknown field"), "{unknown}: {told}");
    }
}

#[test]
fn the_proxy_takes_every_configuration_that_is_rendered() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("buildkit-lb.toml");
    let secrets = Secrets::new();
    for rendered in charts().into_iter().chain(kustomizations()) {
        fs::write(&file, secrets.locate(&rendered.configuration())).expect("written");
        let proxy = rendered.proxy();
        let args = proxy["args"].as_array().expect("args").iter();
        let mut args = args.map(|arg| arg.as_str().expect("text"));
        assert_eq!(args.next(), Some("serve"), "{}", rendered.name);
        let mut check = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
        check.arg("check-config").arg("--config").arg(&file);
        check.args(args.map(|arg| arg.replace("$(POD_NAMESPACE)", "buildkit")));
        for variable in proxy["env"].as_array().expect("env") {
            if let (Some(name), Some(value)) =
                (variable["name"].as_str(), variable["value"].as_str())
            {
                check.env(name, secrets.locate(value));
            }
        }
        let output = run(&mut check);
        assert!(output.status.success(), "{}: {}", rendered.name, text(&output));
    }
}
