//! The Services, and what load balancers and meshes make of them.

use serde_json::Value;

use crate::support::rendered::{DEPLOY, chart, chart_set, charts, kustomizations};

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
fn two_proxies_keep_each_client_on_one() {
    let everything = chart("two", &[format!("{DEPLOY}/chart/ci/everything-values.yaml").into()]);
    assert_eq!(everything.find("Deployment", "buildkit-lb")["spec"]["replicas"], 2);
    let service = everything.find("Service", "buildkit-lb");
    assert_eq!(service["spec"]["sessionAffinity"], "ClientIP");
}
