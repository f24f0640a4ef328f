//! Certificates that are renewed while the proxy runs, as the kubelet renews them.

use std::{
    fs,
    io::Write as _,
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use crate::{
    authorities::{Authorities, builds, daemon, with_tls, workers},
    support::{
        certificates::{Authority, Request},
        client::{Context, build, buildctl_tls, text},
        eventually,
        proxy::Proxy,
    },
};

/// A Secret as the kubelet mounts it: the files are symlinks through `..data`, which is replaced as a whole.
struct Secret {
    directory: tempfile::TempDir,
    versions: usize,
}

impl Secret {
    fn new(authority: &Authority, request: &Request<'_>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut secret = Self { directory, versions: 0 };
        let (certificate, key) = authority.sign(request);
        secret.swap([&certificate, &key, authority.pem()]);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), secret.path().join(name)).expect("linked");
        }
        secret
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Replaces the contents of all files at once.
    fn swap(&mut self, contents: [&str; 3]) {
        self.versions += 1;
        let version = PathBuf::from(format!("..version{}", self.versions));
        fs::create_dir(self.path().join(&version)).expect("a directory");
        for (name, content) in ["tls.crt", "tls.key", "ca.crt"].into_iter().zip(contents) {
            fs::write(self.path().join(&version).join(name), content).expect("written");
        }
        symlink(&version, self.path().join("..data_tmp")).expect("linked");
        fs::rename(self.path().join("..data_tmp"), self.path().join("..data")).expect("swapped");
    }
}

/// The gate that a step of a build waits for.
struct Gate {
    listener: TcpListener,
}

impl Gate {
    fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").expect("a port") }
    }

    /// A step that ends when the gate opens.
    fn step(&self) -> String {
        let address = self.listener.local_addr().expect("bound");
        format!("RUN --network=host wget -q -O /gate http://{address}/")
    }

    /// Waits until a build is at the step.
    fn reached(&self) -> TcpStream {
        self.listener.accept().expect("the step runs").0
    }

    fn open(mut waiting: TcpStream) {
        waiting.write_all(b"HTTP/1.0 200 OK\r\n\r\nopen").expect("the step still waits");
        waiting.shutdown(Shutdown::Write).expect("the step still waits");
        // A socket that is closed with a request unread resets its connection, and the answer is lost with it.
        std::io::copy(&mut waiting, &mut std::io::sink()).expect("the step ends the connection");
    }
}

fn reloads(proxy: &Proxy, side: &str, result: &str) -> f64 {
    let labels = [format!("side=\"{side}\""), format!("result=\"{result}\"")];
    proxy.metric("buildkit_lb_certificate_reloads_total", &[&labels[0], &labels[1]])
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_count_for_new_connections_and_end_no_build() {
    let before = Authorities::new();
    let after = Authorities::new();
    let daemons = [
        daemon(&before.daemons, "old", &Request::SERVER),
        daemon(&after.daemons, "new", &Request::SERVER),
    ];
    let mut own = Secret::new(&before.clients, &Request::SERVER);
    let mut to_daemons = Secret::new(&before.daemons, &Request::CLIENT);
    let proxy = with_tls(&daemons, own.path(), to_daemons.path()).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let old_client = before.clients.directory("client", &Request::CLIENT);
    let new_client = after.clients.directory("client", &Request::CLIENT);
    assert!(!workers(&proxy, &new_client).status.success(), "its authority is not known yet");

    let gate = Gate::new();
    let context = Context::busybox(&gate.step());
    let mut running = build(buildctl_tls(&proxy.addr(), &old_client), &context);
    running.args(["--allow", "network.host", "--no-cache"]);
    let running = running.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let waiting = gate.reached();

    let (certificate, key) = after.clients.sign(&Request::SERVER);
    own.swap([&certificate, &key, after.clients.pem()]);
    let (certificate, key) = after.daemons.sign(&Request::CLIENT);
    to_daemons.swap([&certificate, &key, after.daemons.pem()]);
    eventually("both sides are in force", Duration::from_secs(30), || {
        let reloaded = |side| reloads(&proxy, side, "ok") == 1.0;
        (reloaded("client") && reloaded("backend")).then_some(())
    });
    assert!(!workers(&proxy, &old_client).status.success(), "its authority is known no more");
    eventually("the daemon of the new authority is ready", Duration::from_secs(60), || {
        let labels = ["backend=\"new\"", "state=\"ready\""];
        (proxy.metric("buildkit_lb_backend_state", &labels) == 1.0).then_some(())
    });
    builds(&proxy, &new_client, "over new connections");
    Gate::open(waiting);
    let output = running.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_does_not_belong_together_leaves_the_last_one_in_force() {
    let authorities = Authorities::new();
    let daemons = [authorities.daemon("d0", &Request::SERVER)];
    let mut own = Secret::new(&authorities.clients, &Request::SERVER);
    let to_daemons = authorities.daemons.directory("proxy", &Request::CLIENT);
    let proxy = with_tls(&daemons, own.path(), &to_daemons).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let client = authorities.clients.directory("client", &Request::CLIENT);
    let ((certificate, key), (_, other_key)) =
        (authorities.clients.sign(&Request::SERVER), authorities.clients.sign(&Request::SERVER));
    let ca = authorities.clients.pem();
    let broken = [
        ([certificate.as_str(), &other_key, ca], "does not belong to the certificate"),
        (["", &key, ca], "has no certificate in PEM"),
        ([&certificate, "-----BEGIN PRIVATE KEY-----\nAAAA", ca], "private key"),
    ];
    for (count, (contents, words)) in (1..).zip(broken) {
        own.swap(contents);
        eventually(words, Duration::from_secs(30), || {
            let failed = reloads(&proxy, "client", "failed");
            (failed == f64::from(count)).then_some(())
        });
        let told = proxy.records("certificates cannot be used, the last ones stay");
        let error = told.last().and_then(|fields| fields["error"].as_str()).expect("it is told");
        assert!(error.contains(words), "{error}");
        builds(&proxy, &client, &format!("after {count} broken ones"));
    }
    own.swap([&certificate, &key, ca]);
    eventually("the right pair is in force", Duration::from_secs(30), || {
        (reloads(&proxy, "client", "ok") == 1.0).then_some(())
    });
    builds(&proxy, &client, "with the right pair");
}
