//! A real Kubernetes control plane, and a small kubelet that runs a real buildkitd for each pod.

pub(crate) mod drain;
pub(crate) mod fleet;
pub(crate) mod kubelet;
pub(crate) mod pod;

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::NamedTempFile;

use self::kubelet::Kubelet;
use super::{child::Guarded, eventually, free_port, tools::tool};

/// The chart that deploys the proxy.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart");

/// The controllers that Deployments, StatefulSets and Services need.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,statefulset-controller,\
    endpointslice-controller,serviceaccount-controller,namespace-controller,\
    garbage-collector-controller,disruption-controller";

/// etcd, kube-apiserver with RBAC, kube-controller-manager and the kubelet.
#[derive(Debug)]
pub(crate) struct Cluster {
    // Fields are dropped in this order: each is dropped before what it talks to.
    kubelet: Option<Kubelet>,
    controllers: Option<Guarded>,
    apiserver: Option<Guarded>,
    _etcd: Guarded,
    server: Server,
    etcd_port: u16,
    directory: tempfile::TempDir,
}

/// The kubeconfig of an administrator.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    port: u16,
    kubeconfig: PathBuf,
}

impl Cluster {
    /// Starts only the API server.
    pub(crate) fn bare() -> Self {
        let directory = tempfile::Builder::new().prefix("k8s-").tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let (etcd_port, peer_port) = (free_port(), free_port());
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = (url(etcd_port), url(peer_port));
        let (data, cluster) = (path("etcd"), format!("default={peer}"));
        let args = ["--data-dir", &data, "--listen-client-urls", &client];
        let own = ["--advertise-client-urls", &client, "--listen-peer-urls", &peer];
        let peers = ["--initial-advertise-peer-urls", &peer, "--initial-cluster", &cluster];
        let args = [&args[..], &own, &peers].concat();
        let etcd = Guarded::start_in(&tool("etcd"), &args, &path(""));
        let key = path("sa.key");
        let made = Command::new(tool("openssl")).args(["genrsa", "-out", &key, "2048"]).output();
        assert!(made.is_ok_and(|output| output.status.success()), "openssl makes a key");
        std::fs::write(path("tokens"), "admin,admin,1,system:masters\n").expect("written");
        let kubeconfig = directory.path().join("admin.kubeconfig");
        let server = Server { port: free_port(), kubeconfig };
        let mut cluster = Self {
            kubelet: None,
            controllers: None,
            apiserver: None,
            _etcd: etcd,
            server,
            etcd_port,
            directory,
        };
        cluster.start_apiserver();
        cluster
    }

    /// Starts all parts.
    pub(crate) fn start() -> Self {
        let mut cluster = Self::bare();
        let kubeconfig = cluster.path("admin.kubeconfig");
        let (key, certs, port) =
            (cluster.path("sa.key"), cluster.path("kcm"), free_port().to_string());
        let args = [
            "--kubeconfig",
            &kubeconfig,
            "--controllers",
            CONTROLLERS,
            "--service-account-private-key-file",
            &key,
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port",
            &port,
            "--cert-dir",
            &certs,
        ];
        cluster.controllers = Some(Guarded::start(&tool("kube-controller-manager"), &args));
        cluster.kubelet = Some(Kubelet::start(cluster.server.clone()));
        cluster
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    /// Kills the API server, like the loss of a control plane.
    pub(crate) fn kill_apiserver(&mut self) {
        self.apiserver.as_ref().expect("it runs").signal("KILL");
        self.apiserver = None;
    }

    /// Starts the API server with the same port and certificate, and waits until it is ready.
    pub(crate) fn start_apiserver(&mut self) {
        let etcd = format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port);
        let (port, certs) = (self.server.port.to_string(), self.path("certs"));
        let (key, tokens) = (self.path("sa.key"), self.path("tokens"));
        let args = [
            &etcd,
            "--bind-address=127.0.0.1",
            "--secure-port",
            &port,
            "--cert-dir",
            &certs,
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file",
            &key,
            "--service-account-signing-key-file",
            &key,
            "--token-auth-file",
            &tokens,
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--endpoint-reconciler-type=none",
            // Daemons run as privileged pods.
            "--allow-privileged=true",
            // Without the controllers, nobody makes the accounts that this admission plugin asks for.
            "--disable-admission-plugins=ServiceAccount",
        ];
        self.apiserver = Some(Guarded::start(&tool("kube-apiserver"), &args));
        let ca = format!("{certs}/apiserver.crt");
        eventually("the API server makes a certificate", Duration::from_secs(60), || {
            Path::new(&ca).exists().then_some(())
        });
        self.server.write_kubeconfig(&self.server.kubeconfig, &ca, "admin");
        eventually("the API server is ready", Duration::from_secs(90), || {
            let ready = self.server.run(&["get", "--raw", "/readyz"]);
            ready.status.success().then_some(())
        });
    }

    /// The API server's address.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Makes a namespace.
    pub(crate) fn namespace(&self, name: &str) {
        self.server.kubectl(&["create", "namespace", name]);
    }

    /// The kubeconfig of the service account that the chart makes in `namespace`. The values `set`, each as
    /// `KEY=VALUE`, decide its rights.
    pub(crate) fn account(&self, namespace: &str, set: &[&str]) -> PathBuf {
        self.install(namespace, set, &["--show-only", "templates/rbac.yaml"]);
        let scope = format!("--namespace={namespace}");
        let token = self.server.kubectl(&[&scope, "create", "token", "buildkit-lb"]);
        let kubeconfig = self.directory.path().join(format!("{namespace}.kubeconfig"));
        let ca = self.path("certs/apiserver.crt");
        self.server.write_kubeconfig(&kubeconfig, &ca, token.trim());
        kubeconfig
    }

    /// Applies what the chart renders for `namespace`, with values `set` and further arguments of helm. Returns the
    /// documents.
    pub(crate) fn install(&self, namespace: &str, set: &[&str], args: &[&str]) -> Vec<Value> {
        let mut helm = Command::new(tool("helm"));
        helm.args(["template", "buildkit-lb", CHART, "--namespace", namespace]);
        helm.args(["--kube-version", "1.36.3", "--set", "image.registry=registry.example"])
            .args(args);
        for value in set {
            helm.args(["--set", value]);
        }
        let rendered = helm.output().expect("helm runs");
        let told = String::from_utf8_lossy(&rendered.stderr);
        assert!(rendered.status.success(), "helm template: {told}");
        let rendered = String::from_utf8_lossy(&rendered.stdout);
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).expect("YAML");
        objects.retain(Value::is_object);
        for object in &mut objects {
            // `helm install --namespace` does the same; a Role for another namespace names that namespace itself.
            let own = &mut object["metadata"]["namespace"];
            *own = own.as_str().unwrap_or(namespace).into();
        }
        self.server.apply(&objects);
        objects
    }
}

/// A kubeconfig that leads to no API server.
pub(crate) fn unreachable_kubeconfig() -> NamedTempFile {
    let kubeconfig = NamedTempFile::new().expect("a file");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    std::fs::write(kubeconfig.path(), config.to_string()).expect("written");
    kubeconfig
}

impl Server {
    fn write_kubeconfig(&self, path: &Path, ca: &str, token: &str) {
        let server = format!("https://127.0.0.1:{}", self.port);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": ca}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(path, config.to_string()).expect("written");
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kubectl as administrator.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tool("kubectl"));
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args).stdin(Stdio::null());
        command
    }

    /// Runs kubectl.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("kubectl runs")
    }

    /// Runs kubectl, which must succeed, and returns its output.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {args:?}: {told}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The value of the key `token` in the Secret `name`.
    pub(crate) fn token(&self, namespace: &str, name: &str) -> String {
        let template = "go-template={{.data.token | base64decode}}";
        self.kubectl(&["--namespace", namespace, "get", "secret", name, "-o", template])
    }

    /// The values of all keys in the Secret `name`.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> BTreeMap<String, String> {
        let template = "go-template={{range $key, $value := .data}}{{$key}}={{$value}} {{end}}";
        let text = self.kubectl(&["--namespace", namespace, "get", "secret", name, "-o", template]);
        let keys = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        let decoded = keys.map(|(key, _value)| {
            let template = format!("go-template={{{{index .data \"{key}\" | base64decode}}}}");
            let get = ["--namespace", namespace, "get", "secret", name, "-o", &template];
            (key.to_owned(), self.kubectl(&get))
        });
        decoded.collect()
    }

    /// Makes a Secret of the files in `directory` that have the names of Kubernetes.
    pub(crate) fn make_secret(&self, namespace: &str, name: &str, directory: &Path) {
        let files = ["tls.crt", "tls.key", "ca.crt"]
            .map(|key| format!("--from-file={}", directory.join(key).display()));
        let files = files.each_ref().map(String::as_str);
        let create = ["--namespace", namespace, "create", "secret", "generic", name];
        self.kubectl(&[&create[..], &files].concat());
    }

    /// Runs kubectl with `verb`, for example `apply -f -`, and `object` as its input. Returns whether kubectl
    /// succeeded.
    pub(crate) fn send(&self, verb: &[&str], object: &Value) -> Output {
        self.feed(verb, &object.to_string())
    }

    /// Runs kubectl with `input` as its standard input.
    pub(crate) fn feed(&self, args: &[&str], input: &str) -> Output {
        let mut command = self.command(args);
        let mut kubectl = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut stdin = kubectl.stdin.take().expect("a pipe");
        // kubectl may end before it has read all input; its exit code says why.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        kubectl.wait_with_output().expect("kubectl ends")
    }

    /// Applies `objects` with strict validation.
    pub(crate) fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let output = self.send(&["apply", "--validate=strict", "-f", "-"], &list);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl apply: {told}");
    }
}
