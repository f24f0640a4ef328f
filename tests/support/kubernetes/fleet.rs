//! A fleet of daemons that Kubernetes runs.

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};

use super::{Cluster, pod::HOST};
use crate::support::{
    free_port,
    proxy::{Builder, Proxy},
};

/// A namespace with a fleet and what a proxy in front of it needs.
#[derive(Debug)]
pub(crate) struct Fleet {
    namespace: &'static str,
    kubeconfig: PathBuf,
    admin: String,
}

impl Fleet {
    /// A workload of `kind` in a namespace of its own, and the account of the chart for a proxy.
    pub(crate) fn new(
        cluster: &Cluster,
        namespace: &'static str,
        kind: &str,
        replicas: u32,
    ) -> Self {
        Self::with(cluster, namespace, kind, replicas, &[])
    }

    /// The same with values of the chart, which decide what the account may do.
    pub(crate) fn with(
        cluster: &Cluster,
        namespace: &'static str,
        kind: &str,
        replicas: u32,
        set: &[&str],
    ) -> Self {
        cluster.namespace(namespace);
        let kubeconfig = cluster.account(namespace, set);
        let port = free_port();
        let admin = format!("{HOST}:{port}");
        cluster.server().apply(&objects(namespace, kind, replicas, &admin));
        Self { namespace, kubeconfig, admin: format!("0.0.0.0:{port}") }
    }

    /// A proxy in front of it.
    pub(crate) fn proxy(&self, policy: &str) -> Proxy {
        self.proxy_with(policy, &[])
    }

    /// The same with further arguments.
    pub(crate) fn proxy_with(&self, policy: &str, args: &[&str]) -> Proxy {
        let service = format!("{}/buildkitd", self.namespace);
        let builder = Builder::default().admin(&self.admin).policy(policy).args(args);
        builder.discover(&service, &self.kubeconfig).start()
    }

    /// One more proxy, which its pods do not ask before they end.
    pub(crate) fn another_proxy(&self, policy: &str, args: &[&str]) -> Proxy {
        let service = format!("{}/buildkitd", self.namespace);
        let builder = Builder::default().policy(policy).args(args);
        builder.discover(&service, &self.kubeconfig).start()
    }

    /// A workload in another namespace, whose pods ask the same proxy before they end.
    pub(crate) fn beside(&self, cluster: &Cluster, namespace: &str, kind: &str, replicas: u32) {
        let admin = self.admin.replace("0.0.0.0", HOST);
        cluster.server().apply(&objects(namespace, kind, replicas, &admin));
    }

    /// A proxy that reads this configuration, with the rights of the fleet's account.
    pub(crate) fn proxy_of(&self, file: &str) -> Proxy {
        Builder::default().admin(&self.admin).file(file).kubeconfig(&self.kubeconfig).start()
    }

    /// kubectl in its namespace.
    pub(crate) fn kubectl(&self, cluster: &Cluster, args: &[&str]) -> String {
        cluster.server().kubectl(&[&["-n", self.namespace], args].concat())
    }
}

/// A workload of `kind` whose pods wait for their builds before they end, and its Service.
pub(crate) fn objects(namespace: &str, kind: &str, replicas: u32, admin: &str) -> Vec<Value> {
    // New builds stop when the proxy hears of the end; those that run are waited for.
    let hook = format!("wget -qO- http://{admin}/backends/$HOSTNAME/drain?timeout=50s");
    let metadata = json!({"name": "buildkitd", "namespace": namespace});
    let labels = json!({"app": "buildkitd"});
    let pod_labels = json!({"app": "buildkitd", "app.kubernetes.io/version": "v0.32.2"});
    let container = json!({
        "name": "buildkitd",
        "image": "buildkitd",
        "ports": [{"name": "buildkit", "containerPort": 1234}],
        "lifecycle": {"preStop": {"exec": {"command": ["busybox", "sh", "-c", hook]}}},
    });
    let mut spec = json!({
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": pod_labels},
            "spec": {"terminationGracePeriodSeconds": 60, "containers": [container]},
        },
    });
    if kind == "StatefulSet" {
        spec["serviceName"] = json!("buildkitd");
        spec["podManagementPolicy"] = json!("Parallel");
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "clusterIP": "None", "selector": labels,
            "ports": [{"name": "buildkit", "port": 1234}],
        },
    });
    let workload =
        json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec});
    vec![service, workload]
}

/// Waits until so many backends are ready.
pub(crate) fn ready(proxy: &Proxy, count: u32) {
    proxy.wait_ready(count, Duration::from_secs(120));
}
