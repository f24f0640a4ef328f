//! The number of daemons, and who decides it.

use serde_json::Value;

use crate::support::rendered::chart_set;

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
