//! A fleet of daemons that Kubernetes runs.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Cluster, pod::HOST};
use crate::support::{
    free_port,
    proxy::{Builder, Proxy},
};

/// The chart's settings with which pods drain themselves.
const TOKEN: &str = "2c26b46b68ffc68ff99b453c1d304134";

/// A namespace with a fleet, and what a proxy in front of the fleet needs.
#[derive(Debug)]
pub(crate) struct Fleet {
    namespace: &'static str,
    kubeconfig: PathBuf,
    admin: String,
    token: NamedTempFile,
}

impl Fleet {
    /// Makes a workload of `kind` in a namespace of its own, and the chart's account for a proxy.
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
        let token = NamedTempFile::new().expect("a file");
        fs::write(token.path(), TOKEN).expect("written");
        Self { namespace, kubeconfig, admin: format!("0.0.0.0:{port}"), token }
    }

    /// Starts a proxy in front of the fleet.
    pub(crate) fn proxy(&self, policy: &str) -> Proxy {
        self.proxy_with(policy, &[])
    }

    /// The same with further arguments.
    pub(crate) fn proxy_with(&self, policy: &str, args: &[&str]) -> Proxy {
        let service = format!("{}/buildkitd", self.namespace);
        let builder = self.builder().policy(policy).args(args);
        builder.discover(&service, &self.kubeconfig).start()
    }

    /// Starts one more proxy, which the pods do not ask before they end.
    pub(crate) fn another_proxy(&self, policy: &str, args: &[&str]) -> Proxy {
        let service = format!("{}/buildkitd", self.namespace);
        let builder = Builder::default().policy(policy).args(args);
        builder.discover(&service, &self.kubeconfig).start()
    }

    /// Makes a workload in another namespace, whose pods ask the same proxy before they end.
    pub(crate) fn beside(&self, cluster: &Cluster, namespace: &str, kind: &str, replicas: u32) {
        let admin = self.admin.replace("0.0.0.0", HOST);
        cluster.server().apply(&objects(namespace, kind, replicas, &admin));
    }

    /// A proxy that reads this configuration, with the rights of the fleet's account.
    pub(crate) fn proxy_of(&self, file: &str) -> Proxy {
        self.builder().file(file).kubeconfig(&self.kubeconfig).start()
    }

    /// The proxy that the pods ask before they end.
    fn builder(&self) -> Builder {
        let token = self.token.path().to_string_lossy().into_owned();
        Builder::default().admin(&self.admin).args(&["--admin-token-file", &token])
    }

    /// kubectl in the fleet's namespace.
    pub(crate) fn kubectl(&self, cluster: &Cluster, args: &[&str]) -> String {
        cluster.server().kubectl(&[&["-n", self.namespace], args].concat())
    }
}

/// A workload of `kind` whose pods wait for their builds before they end, and its Service.
pub(crate) fn objects(namespace: &str, kind: &str, replicas: u32, admin: &str) -> Vec<Value> {
    let metadata = json!({"name": "buildkitd", "namespace": namespace});
    let labels = json!({"app": "buildkitd"});
    let pod_labels = json!({"app": "buildkitd", "app.kubernetes.io/version": "v0.32.2"});
    // New builds stop when the proxy hears that the pod ends. Running builds are waited for.
    let hook = "until [ -e /drained/drained ]; do sleep 0.1; done";
    let drained = json!({"name": "drained", "mountPath": "/drained"});
    let container = json!({
        "name": "buildkitd",
        "image": "buildkitd",
        "ports": [{"name": "buildkit", "containerPort": 1234}],
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", hook]}}},
        "volumeMounts": [drained],
    });
    let proxy = format!("--proxy={admin}");
    let drain = json!({
        "name": "drain",
        "image": "buildkit-lb",
        "args": [
            "drain-backend", "$(POD_NAME)", "--address=$(POD_IPS)", proxy, "--timeout=50s",
            "--token-file=/token/token", "--at-signal", "--done-file=/drained/drained",
        ],
        "volumeMounts": [{"name": "token", "mountPath": "/token"}, drained],
    });
    let volumes = json!([
        {"name": "token", "secret": {"secretName": "token"}},
        {"name": "drained", "emptyDir": {}},
    ]);
    let token = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "token", "namespace": namespace},
        "stringData": {"token": TOKEN},
    });
    let mut spec = json!({
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": pod_labels},
            "spec": {
                "terminationGracePeriodSeconds": 60, "containers": [container, drain], "volumes": volumes,
            },
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
    vec![token, service, workload]
}

/// Waits until `count` backends are ready.
pub(crate) fn ready(proxy: &Proxy, count: u32) {
    proxy.wait_ready(count, Duration::from_secs(120));
}
