//! What `deploy/` renders is correct: the real API server accepts all objects, the proxy accepts its configuration,
//! and values, schema and templates of the chart name the same keys.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use regex::Regex;
use serde_json::Value;
use support::{
    certificates::{Authority, Request},
    client::{run, text},
    eventually,
    kubernetes::Cluster,
    rendered::{
        DEPLOY, Rendered, agents, chart, chart_set, charts, kustomization, kustomizations,
        with_identity,
    },
    tools::{definitions, tool},
};

/// The namespace of the agents, in which the fleet has no rights.
const AGENTS: &str = "azure-agents";

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
fn further_kinds() -> Vec<(String, String)> {
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
        &["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"],
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

/// The containers of a pod, by name.
fn containers(pod: &Value) -> BTreeMap<String, Value> {
    let named = |container: &Value| {
        (container["name"].as_str().expect("a name").to_owned(), container.clone())
    };
    pod["containers"].as_array().expect("containers").iter().map(named).collect()
}

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
fn the_token_is_in_containers_that_run_no_build_and_nowhere_else() {
    // Kubernetes replaces the variables.
    let variable = Regex::new(r"\$\([A-Z_]+\)").expect("valid");
    for rendered in charts().into_iter().chain(kustomizations()) {
        let mut drains = 0;
        for document in rendered.documents() {
            let kind = document["kind"].as_str().expect("a kind");
            let pod = match kind {
                "Pod" => &document["spec"],
                "Deployment" | "StatefulSet" => &document["spec"]["template"]["spec"],
                _ => continue,
            };
            assert_ne!(pod["shareProcessNamespace"], true);
            for (name, container) in containers(pod) {
                let mounts = container["volumeMounts"].to_string();
                let has = mounts.contains("\"token\"");
                assert_eq!(
                    has,
                    matches!(&*name, "drain" | "buildkit-lb"),
                    "{} {name}",
                    rendered.name
                );
                assert!(!container["env"].to_string().contains("secretKeyRef"), "{name}");
                if name == "drain" {
                    drains += 1;
                    // The arguments that the proxy's own binary takes.
                    let args = container["args"].as_array().expect("args").iter();
                    let mut drain = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
                    drain.args(args.map(|arg| {
                        variable.replace_all(arg.as_str().expect("text"), "x").into_owned()
                    }));
                    drain.arg("--help");
                    assert!(text(&run(&mut drain)).contains("--done-file"), "{}", rendered.name);
                }
            }
        }
        let daemons = rendered.yaml.contains("name: buildkitd\n") as usize;
        assert!(drains >= daemons, "{}", rendered.name);
    }
}

#[test]
fn a_secret_of_the_chart_is_a_token_and_another_ones_is_used() {
    let rendered = chart("secret", &[]);
    let secret = rendered.find("Secret", "buildkit-lb-token");
    let token = secret["data"]["token"].as_str().expect("a token");
    assert!(token.len() >= 64, "64 characters are 88 in base 64");
    let daemons = chart("daemons", &[format!("{DEPLOY}/chart/ci/daemons-values.yaml").into()]);
    assert!(!daemons.yaml.contains("kind: Secret\n"), "{}", daemons.yaml);
    assert!(daemons.yaml.contains("secretName: buildkit-lb-token"));
}

#[test]
fn a_pool_of_the_chart_has_its_port_and_its_rights() {
    let everything = chart("pools", &[format!("{DEPLOY}/chart/ci/everything-values.yaml").into()]);
    let ports = everything.find("Service", "buildkit-lb")["spec"]["ports"].clone();
    let port = ports.as_array().expect("a list").iter().find(|port| port["name"] == "arm64");
    assert_eq!(port.expect("the pool's port")["targetPort"], 1235);
    let open = everything.proxy()["ports"].to_string();
    assert!(open.contains("1235") && open.contains("1236"), "{open}");
    let toml: toml::Table = everything.configuration().parse().expect("TOML");
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
fn an_upgrade_leaves_the_number_of_daemons_to_whoever_scales_them() {
    for (mode, kind) in [("statefulset", "StatefulSet"), ("deployment", "Deployment")] {
        let mode = format!("buildkitd.mode={mode}");
        let scaled = chart_set("scaled", &[], &[&mode, "buildkitd.replicas=null"]);
        assert!(scaled.find(kind, "buildkitd")["spec"].get("replicas").is_none(), "{kind}");
        let none = chart_set("none", &[], &[&mode, "buildkitd.replicas=0"]);
        assert_eq!(none.find(kind, "buildkitd")["spec"]["replicas"], 0);
    }
}

#[test]
fn keda_decides_how_many_daemons_there_are_and_asks_the_proxy() {
    for (mode, kind, idle_first) in
        [("statefulset", "StatefulSet", false), ("deployment", "Deployment", true)]
    {
        let mode_value = format!("buildkitd.mode={mode}");
        let set = ["buildkitd.autoscaling.enabled=true", "networkPolicy.enabled=true", &mode_value];
        let rendered = chart_set("scaled", &[], &set);
        assert_eq!(rendered.find(kind, "buildkitd")["spec"]["replicas"], Value::Null);
        let scaled = &rendered.find("ScaledObject", "buildkitd")["spec"];
        assert_eq!(scaled["scaleTargetRef"]["kind"], kind);
        assert_eq!(scaled["fallback"], Value::Null, "an error must not scale to anything");
        let trigger = &scaled["triggers"][0];
        assert_eq!(trigger["type"], "external-push");
        let address = trigger["metadata"]["scalerAddress"].as_str().expect("an address");
        let service = rendered.find("Service", "buildkit-lb-scaler");
        let port = &service["spec"]["ports"][0];
        assert_eq!(address, format!("buildkit-lb-scaler.scaled:{}", port["port"]));
        let open = rendered.proxy()["ports"].as_array().expect("a list").clone();
        let open = open.iter().find(|open| open["name"] == port["targetPort"]).expect("open");
        let configuration: toml::Table = rendered.configuration().parse().expect("TOML");
        let listen = configuration["scaler-listen"].as_str().expect("an address");
        assert!(listen.ends_with(&format!(":{}", open["containerPort"])), "{listen}");
        // Only a Deployment ends the pods with the lowest cost first.
        assert_eq!(configuration.contains_key("pod-deletion-cost"), idle_first, "{mode}");
        let rights = rendered.find("Role", "buildkit-lb")["rules"].to_string();
        assert_eq!(rights.contains("patch"), idle_first, "{mode}");
        let policy = rendered.find("NetworkPolicy", "buildkit-lb");
        let rules = policy["spec"]["ingress"].as_array().expect("a list").iter();
        let of_scaler: Vec<_> = rules.filter(|rule| rule["ports"][0]["port"] == 9093).collect();
        assert_eq!(of_scaler.len(), 1);
        assert!(of_scaler[0]["from"].to_string().contains("\"keda\""), "{}", of_scaler[0]);
    }
}

#[test]
fn the_scaler_speaks_tls_with_the_secret_that_it_is_given() {
    let set = [
        "buildkitd.autoscaling.enabled=true",
        "buildkitd.autoscaling.tls.existingSecret=for-keda",
        "buildkitd.autoscaling.tls.authentication=keda",
    ];
    let rendered = chart_set("scaled", &[], &set);
    let trigger = &rendered.find("ScaledObject", "buildkitd")["spec"]["triggers"][0];
    assert_eq!(trigger["metadata"]["enableTLS"], "true");
    assert_eq!(trigger["authenticationRef"]["name"], "keda");
    let configuration: toml::Table = rendered.configuration().parse().expect("TOML");
    let directory = configuration["scaler-tls-dir"].as_str().expect("a directory");
    let proxy = rendered.proxy();
    let mut mounts = proxy["volumeMounts"].as_array().expect("a list").iter();
    let mount = mounts.find(|mount| mount["mountPath"] == directory).expect("mounted");
    let pod = &rendered.find("Deployment", "buildkit-lb")["spec"]["template"]["spec"];
    let mut volumes = pod["volumes"].as_array().expect("a list").iter();
    let volume = volumes.find(|volume| volume["name"] == mount["name"]).expect("a volume");
    assert_eq!(volume["secret"]["secretName"], "for-keda");
}

#[test]
fn probes_drains_and_monitors_speak_tls_where_the_admin_port_does() {
    let set = [
        "adminTLS.existingSecret=admin",
        "adminTLS.scraperSecret=scraper",
        "metrics.podMonitor.enabled=true",
    ];
    let rendered = chart_set("secure", &[], &set);
    let proxy = rendered.proxy();
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(proxy[probe]["httpGet"]["scheme"], "HTTPS");
    }
    let monitor = rendered.find("PodMonitor", "buildkit-lb");
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(endpoint["scheme"], "https");
    assert_eq!(endpoint["tlsConfig"]["cert"]["secret"]["name"], "scraper");
    let pod = &rendered.find("StatefulSet", "buildkitd")["spec"]["template"]["spec"];
    let drain = &containers(pod)["drain"];
    let name = endpoint["tlsConfig"]["serverName"].as_str().expect("a name");
    let args = drain["args"].to_string();
    assert!(args.contains(&format!("--proxy-tls-server-name={name}")), "{args}");
    assert!(args.contains("--proxy-tls-dir=/run/secrets/admin-tls"), "{args}");
    // The key of the admin port stays in the proxy's pod.
    let mut volumes = pod["volumes"].as_array().expect("a list").iter();
    let volume = volumes.find(|volume| volume["name"] == "admin-tls").expect("a volume");
    let only = serde_json::json!([{"key": "ca.crt", "path": "ca.crt"}]);
    assert_eq!(volume["secret"]["items"], only);
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
fn no_load_balancer_lets_everyone_build() {
    for rendered in charts().into_iter().chain(kustomizations()) {
        for service in rendered.documents() {
            if service["kind"] != "Service" || service["spec"]["type"] != "LoadBalancer" {
                continue;
            }
            let ranges = service["spec"]["loadBalancerSourceRanges"].as_array();
            let limited = ranges.is_some_and(|ranges| {
                !ranges.is_empty() && !ranges.iter().any(|range| range == "0.0.0.0/0")
            });
            let annotation = "service.beta.kubernetes.io/azure-load-balancer-internal";
            let internal = service["metadata"]["annotations"][annotation] == "true";
            let required = r#"tls-client-auth = "required""#;
            let certificates = rendered.configuration().contains(required);
            assert!(limited || internal || certificates, "{}", rendered.name);
        }
    }
}

#[test]
fn certificates_are_for_the_names_that_are_asked_for() {
    let set = [
        "tls.certManager.enabled=true",
        "tls.certManager.issuerRef.name=clients",
        "backendTLS.certManager.enabled=true",
        "backendTLS.certManager.issuerRef.name=daemons",
        "test.tlsSecret=client",
    ];
    let rendered = chart_set("secure", &[], &set);
    let spec = |name: &str| rendered.find("Certificate", name)["spec"].clone();
    let names = |name: &str| spec(name)["dnsNames"].to_string();
    // The name that the chart's own test connects to, and the name that the proxy expects by default.
    assert!(names("buildkit-lb").contains("\"buildkit-lb\""), "{}", names("buildkit-lb"));
    assert!(names("buildkitd").contains("\"buildkitd.secure.svc\""), "{}", names("buildkitd"));
    assert!(spec("buildkit-lb-backend")["usages"].to_string().contains("client auth"));
    let mounted = |kind: &str, name: &str, certificate: &str| {
        let volumes = rendered.find(kind, name)["spec"]["template"]["spec"]["volumes"].to_string();
        let secret = spec(certificate)["secretName"].as_str().expect("a name").to_owned();
        assert!(volumes.contains(&format!("\"secretName\":\"{secret}\"")), "{name}: {volumes}");
    };
    mounted("Deployment", "buildkit-lb", "buildkit-lb");
    mounted("Deployment", "buildkit-lb", "buildkit-lb-backend");
    mounted("StatefulSet", "buildkitd", "buildkitd");
    let test = rendered.find("Pod", "buildkit-lb-test");
    assert!(test["spec"]["containers"][0]["args"].to_string().contains("--tlscert="));
}

#[test]
fn probes_of_daemons_need_no_certificate() {
    let set = ["backendTLS.existingSecret=proxy", "backendTLS.daemonSecret=daemons"];
    let daemons = chart_set("secure", &[], &set).find("StatefulSet", "buildkitd");
    let daemon = containers(&daemons["spec"]["template"]["spec"])["buildkitd"].clone();
    assert!(daemon["args"].to_string().contains("--tlscacert=/run/secrets/tls/ca.crt"));
    for probe in ["readinessProbe", "livenessProbe"] {
        // The socket in the pod, which is the daemon's default address, has no TLS.
        assert_eq!(
            daemon[probe]["exec"]["command"],
            serde_json::json!(["buildctl", "debug", "workers"])
        );
    }
}

#[test]
fn a_load_balancer_can_go_without_ports_of_the_nodes() {
    let asked = |set: &[&str]| {
        let rendered = chart_set("ports", &[], set);
        rendered.find("Service", "buildkit-lb")["spec"]
            .get("allocateLoadBalancerNodePorts")
            .cloned()
    };
    let without = "service.allocateLoadBalancerNodePorts=false";
    let balanced = ["service.type=LoadBalancer", "service.loadBalancerSourceRanges={10.0.0.0/8}"];
    assert_eq!(asked(&[&balanced[..], &[without]].concat()), Some(Value::Bool(false)));
    assert_eq!(asked(&balanced), None);
    assert_eq!(asked(&[without]), None, "the API server refuses it");
}

#[test]
fn a_mesh_leaves_the_calls_of_a_build_together() {
    for rendered in charts().into_iter().chain(kustomizations()) {
        for service in rendered.documents() {
            let ports = service["spec"]["ports"].as_array().into_iter().flatten();
            // The rest are the ports of the admin port and of the scaler.
            let builds = ports.filter(|port| {
                service["kind"] == "Service" && port["port"] != 9090 && port["port"] != 9093
            });
            for port in builds {
                assert_eq!(port["appProtocol"], "tcp", "{}: {service}", rendered.name);
            }
        }
    }
}

#[test]
fn azure_probes_the_ready_proxies_of_a_node() {
    let aks = [format!("{DEPLOY}/chart/values-aks.yaml").into()];
    let service = chart("aks", &aks).find("Service", "buildkit-lb");
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
    let annotations = service["metadata"]["annotations"].as_object().expect("annotations");
    // A probe of a port of its own replaces the probe of the health check node port.
    let replaced = annotations.keys().find(|name| name.contains("/port_"));
    assert_eq!(replaced, None);
}

#[test]
fn the_admin_port_is_open_to_nobody_from_anywhere() {
    for rendered in charts().into_iter().chain(kustomizations()) {
        for document in rendered.documents() {
            let ports = document["spec"]["ports"].to_string();
            if document["kind"] == "Service" && ports.contains("9090") {
                assert_eq!(document["spec"]["clusterIP"], "None", "{}", rendered.name);
            }
            let rules = document["spec"]["ingress"].as_array().into_iter().flatten();
            for rule in rules.filter(|rule| rule["ports"].to_string().contains("9090")) {
                let from = rule["from"].to_string();
                assert!(from != "null" && !from.contains("/0\""), "{}: {from}", rendered.name);
            }
        }
    }
}

#[test]
fn a_policy_lets_the_proxy_reach_daemons_with_fixed_addresses() {
    let set = [
        "networkPolicy.enabled=true",
        "backends={a=tcp://10.1.2.3:1234?capacity=2,[fd00::7]:1300,tcp://daemon.example:1400}",
        "pools[0].name=more,pools[0].port=1235,pools[0].backends={10.1.2.4:1500,unix:///daemon}",
    ];
    let policy = chart_set("fixed", &[], &set).find("NetworkPolicy", "buildkit-lb");
    let open = |port: u64, cidr: Option<&str>| {
        let rules = policy["spec"]["egress"].as_array().expect("rules").iter();
        let mut of_port = rules.filter(|rule| rule["ports"][0]["port"] == port);
        let to = of_port.any(|rule| rule["to"][0]["ipBlock"]["cidr"].as_str() == cidr);
        assert!(to, "{port} {cidr:?}: {policy}");
    };
    open(1234, Some("10.1.2.3/32"));
    open(1300, Some("fd00::7/128"));
    open(1400, None);
    open(1500, Some("10.1.2.4/32"));
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
fn daemons_trust_the_authorities_of_the_bundle_beside_their_images() {
    let set = ["buildkitd.caBundle.secret=authorities", "buildkitd.caBundle.key=root.pem"];
    let daemons = chart_set("authorities", &[], &set).find("StatefulSet", "buildkitd");
    let pod = &daemons["spec"]["template"]["spec"];
    let bundle = &pod["initContainers"][0];
    // The file that the init container writes is the one that the daemon mounts.
    let [image, given, written] = ["image", "given", "written"]
        .map(|name| tempfile::Builder::new().prefix(name).tempdir().expect("a directory"));
    fs::write(image.path().join("ca-certificates.crt"), "theirs\n").expect("written");
    fs::write(given.path().join("ca.crt"), "ours\n").expect("written");
    let mut script = bundle["command"][2].as_str().expect("a script").to_owned();
    for (path, directory) in
        [("/etc/ssl/certs", &image), ("/run/ca-bundle", &given), ("/run/ca-certificates", &written)]
    {
        script = script.replace(path, &directory.path().display().to_string());
    }
    let output = run(Command::new(tool("busybox")).args(["sh", "-ec", &script]));
    assert!(output.status.success(), "{}", text(&output));
    let both = fs::read_to_string(written.path().join("ca-certificates.crt")).expect("a file");
    assert_eq!(both, "theirs\nours\n");
    let mounts = containers(pod)["buildkitd"]["volumeMounts"].to_string();
    assert!(mounts.contains("/etc/ssl/certs/ca-certificates.crt"), "{mounts}");
    let volumes = pod["volumes"].to_string();
    assert!(volumes.contains(r#""items":[{"key":"root.pem","path":"ca.crt"}]"#), "{volumes}");
    let plain = chart("plain", &[]).find("StatefulSet", "buildkitd");
    assert!(plain["spec"]["template"]["spec"].get("initContainers").is_none());
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

#[test]
fn agents_can_do_without_a_personal_access_token() {
    for agents in agents().map(|agents| with_identity(&agents)) {
        for document in agents.documents() {
            let pod = match document["kind"].as_str().expect("a kind") {
                "ServiceAccount" => {
                    let client = "azure.workload.identity/client-id";
                    assert_eq!(document["metadata"]["annotations"][client], "CLIENT_ID");
                    continue;
                }
                "TriggerAuthentication" => {
                    assert_eq!(document["spec"]["podIdentity"]["provider"], "azure-workload");
                    assert!(!document.to_string().contains("personalAccessToken"));
                    continue;
                }
                "ScaledJob" => &document["spec"]["jobTargetRef"]["template"],
                _ => &document["spec"]["template"],
            };
            let identity = &pod["metadata"]["labels"]["azure.workload.identity/use"];
            assert_eq!(identity, "true", "{}", agents.name);
            let volumes = pod["spec"]["volumes"].as_array().expect("a list");
            for volume in volumes {
                assert_eq!(volume["secret"]["optional"], true, "{}", agents.name);
            }
        }
    }
}

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
fn two_proxies_keep_each_client_on_one() {
    let everything = chart("two", &[format!("{DEPLOY}/chart/ci/everything-values.yaml").into()]);
    assert_eq!(everything.find("Deployment", "buildkit-lb")["spec"]["replicas"], 2);
    let service = everything.find("Service", "buildkit-lb");
    assert_eq!(service["spec"]["sessionAffinity"], "ClientIP");
}

#[test]
fn values_schema_and_templates_name_the_same_keys() {
    let chart = Path::new(DEPLOY).join("chart");
    let read = |name: &str| fs::read_to_string(chart.join(name)).expect("a file");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).expect("YAML");
    let mut keys = BTreeSet::new();
    leaves(&schema, &values, "", &mut keys);
    assert!(keys.len() > 100, "{}", keys.len());

    let reference = Regex::new(r"\.Values((?:\.[A-Za-z]+)+)").expect("valid");
    let mut used = BTreeSet::new();
    for directory in ["templates", "templates/tests"] {
        for entry in fs::read_dir(chart.join(directory)).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let template = fs::read_to_string(path).expect("a template");
                let found = reference.captures_iter(&template);
                used.extend(found.map(|found| found[1].trim_start_matches('.').to_owned()));
            }
        }
    }
    assert_eq!(keys, used);
}

/// The keys that the schema names as a whole. Each has a default.
fn leaves(schema: &Value, values: &Value, path: &str, keys: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        keys.insert(path.to_owned());
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "{path} takes keys that nobody reads");
    for (key, schema) in properties {
        // Helm's own values, for charts that this chart is a part of.
        if path.is_empty() && key == "global" {
            continue;
        }
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let value = values.get(key);
        assert!(value.is_some(), "{below} has no default");
        leaves(schema, value.unwrap_or(&Value::Null), &below, keys);
    }
    for key in values.as_object().into_iter().flatten().map(|(key, _value)| key) {
        assert!(properties.contains_key(key), "{path}.{key} is not in the schema");
    }
}
