//! Alerts about faults of a real proxy.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use crate::{
    server::Prometheus,
    support::{
        buildkitd::Buildkitd,
        certificates::{Authority, Request, write},
        client::{Context, build, buildctl_tls, is_running, run, text},
        eventually,
        proxy::Proxy,
    },
};

/// More than the alerts about attempts of strangers let pass.
const ATTEMPTS: usize = 30;

/// A command that has been started and is killed with its test.
struct Started(Child);

impl Started {
    fn new(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn alerts_come_for_faults_of_a_real_proxy() {
    let mut daemon = Buildkitd::start("d0");
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let client = authority.directory("client", &Request::CLIENT);
    let tokens = tempfile::NamedTempFile::new().expect("a file");
    fs::write(tokens.path(), "the-token-of-the-test-0123456789abcdef\n").expect("written");
    let proxy = Proxy::in_front_of([&daemon])
        .backend("a=tcp://127.0.0.1:1")
        .args(&["--tls-dir", own.to_str().expect("UTF-8")])
        .args(&["--admin-token-file", tokens.path().to_str().expect("UTF-8")])
        .args(&["--max-builds", "1", "--max-waiting", "1"])
        .start();
    let prometheus = Prometheus::start(&proxy);
    prometheus.alert("BuildkitLbBackendUnhealthy");
    let before = BTreeSet::from(["BuildkitLbBackendUnhealthy".to_owned()]);
    assert_eq!(prometheus.alerts(), before, "the daemon that does not exist");

    let context = Context::busybox("RUN sleep 5417");
    let command = || build(buildctl_tls(&proxy.addr(), &client), &context);
    let running = Started::new(&mut command());
    eventually("the build runs", super::server::WAIT, || is_running("sleep 5417").then_some(()));
    let waiting = Started::new(&mut command());
    prometheus.alert("BuildkitLbBuildsWait");
    let refused = run(&mut command());
    assert!(!refused.status.success(), "{}", text(&refused));
    prometheus.alert("BuildkitLbBuildsRefused");

    for _ in 0..ATTEMPTS {
        // A record of TLS that is none of a handshake.
        let mut stranger = TcpStream::connect(proxy.socket()).expect("connected");
        stranger.write_all(b"\x16\x03\x01\x00\x05wrong").expect("written");
        let _ = stranger.read_to_end(&mut Vec::new());
        let headers = "Authorization: Bearer wrong\r\n";
        assert_eq!(proxy.admin_with("POST", "/backends/d0/cordon", headers).0, 401);
    }
    prometheus.alert("BuildkitLbTlsHandshakesFail");
    prometheus.alert("BuildkitLbAdminRequestsRefused");

    write(&own, [Some(&"no certificate".to_owned()), None, None]);
    prometheus.alert("BuildkitLbCertificateNotLoaded");

    daemon.kill();
    prometheus.alert("BuildkitLbBuildsLost");
    prometheus.alert("BuildkitLbNoBackendReady");
    drop((running, waiting));
}
