//! Tokens, certificates and network policies: who may reach what.

use std::{fs, process::Command};

use regex::Regex;

use crate::{
    containers,
    support::{
        client::{run, text},
        rendered::{DEPLOY, agents, chart, chart_set, charts, kustomizations, with_identity},
        tools::tool,
    },
};

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
