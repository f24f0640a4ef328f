//! A real API server of Kubernetes, without controllers and nodes: it validates and stores.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    time::Duration,
};

use super::{child::Guarded, eventually, free_port};

/// Of the one user, who may do everything.
const TOKEN: &str = "test";

/// etcd and kube-apiserver on loopback.
#[derive(Debug)]
pub(crate) struct ApiServer {
    _apiserver: Guarded,
    _etcd: Guarded,
    server: String,
    _files: tempfile::TempDir,
}

impl ApiServer {
    /// Starts both, and waits until the server is ready.
    pub(crate) fn start() -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let path = |name: &str| files.path().join(name).display().to_string();
        fs::write(path("tokens"), format!("{TOKEN},admin,1,system:masters")).expect("written");
        let key = Command::new("ssh-keygen")
            .args(["-q", "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "", "-f", &path("key")])
            .status();
        assert!(key.is_ok_and(|status| status.success()), "ssh-keygen makes a key");
        let clients = format!("http://127.0.0.1:{}", free_port());
        let peers = format!("http://127.0.0.1:{}", free_port());
        let etcd = Guarded::start(
            &tool("etcd"),
            &[
                &format!("--data-dir={}", path("etcd")),
                &format!("--listen-client-urls={clients}"),
                &format!("--advertise-client-urls={clients}"),
                &format!("--listen-peer-urls={peers}"),
                &format!("--initial-advertise-peer-urls={peers}"),
                &format!("--initial-cluster=default={peers}"),
                "--unsafe-no-fsync",
            ],
        );
        let port = free_port();
        let apiserver = Guarded::start(
            &tool("kube-apiserver"),
            &[
                &format!("--etcd-servers={clients}"),
                "--bind-address=127.0.0.1",
                &format!("--secure-port={port}"),
                &format!("--cert-dir={}", path("certificates")),
                "--service-account-issuer=https://kubernetes.test",
                &format!("--service-account-key-file={}", path("key")),
                &format!("--service-account-signing-key-file={}", path("key")),
                &format!("--token-auth-file={}", path("tokens")),
                "--authorization-mode=RBAC",
                // Daemons are.
                "--allow-privileged=true",
                "--service-cluster-ip-range=10.96.0.0/16",
                // Nobody makes the accounts that this would ask for.
                "--disable-admission-plugins=ServiceAccount",
            ],
        );
        let server = format!("https://127.0.0.1:{port}");
        let this = Self { _apiserver: apiserver, _etcd: etcd, server, _files: files };
        eventually("the API server is ready", Duration::from_secs(120), || {
            this.kubectl(&["get", "--raw", "/readyz"], "").status.success().then_some(())
        });
        this
    }

    /// Runs kubectl as the administrator, with `input` as its standard input.
    pub(crate) fn kubectl(&self, args: &[&str], input: &str) -> Output {
        let mut kubectl = Command::new(tool("kubectl"))
            .args(["--server", &self.server, "--token", TOKEN, "--insecure-skip-tls-verify"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl runs");
        let mut stdin = kubectl.stdin.take().expect("piped");
        // Whoever asks for no input may have ended by now.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        kubectl.wait_with_output().expect("kubectl ends")
    }
}

/// The path of a program of `tests/tools/kubernetes`, installed now if it is missing; etcd is Debian's.
pub(crate) fn tool(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(install);
    if name == "etcd" { name.into() } else { directory.join(name) }
}

fn install() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/kubernetes/install");
    let output = Command::new(script).output().expect("tests/tools/kubernetes/install runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tests/tools/kubernetes/install failed: {told}");
    stdout.lines().last().expect("it prints a directory").into()
}
