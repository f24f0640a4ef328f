//! What `[[access]]` rules allow real clients at real daemons, and what `explain-access` prints about it.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use buildkit_lb::wire::{
    self,
    control::{Exporter, SolveRequest},
};
use bytes::Bytes;
use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::{Context, build, buildctl_tls, run, text},
    eventually,
    fake_daemon::{FakeDaemon, Seen},
    proxy::{Builder, Proxy},
    raw_client::RawClient,
    registry::Registry,
};

/// Only these clients may do anything: `strict` may do little, `ops` may do much.
const RULES: &str = "
listen = 'tcp://127.0.0.1:0'

[[access]]
clients = ['ops']
operations = ['build', 'prune', 'disk-usage']
history = 'all'
content = 'all'
entitlements = ['*']

[[access]]
clients = ['strict', 'spiffe://example.org/*']
exporters = ['local', 'image']
cache-exporters = ['inline']
push = ['*/own/*']
max-builds = 1
";

/// A proxy with these rules in front of one daemon, and its clients by name.
struct Fixture {
    proxy: Proxy,
    authority: Authority,
    registry: Registry,
    _daemon: Buildkitd,
}

impl Fixture {
    fn start() -> Self {
        let daemon = Buildkitd::start("only");
        let authority = Authority::new("of clients");
        let own = authority.directory("proxy", &Request::SERVER);
        let proxy = Proxy::in_front_of([&daemon]).file(RULES);
        let proxy = proxy.args(&["--tls-dir", own.to_str().expect("UTF-8")]).start();
        proxy.wait_ready(1, Duration::from_secs(10));
        Self { proxy, authority, registry: Registry::start(), _daemon: daemon }
    }

    fn certificate(&self, name: &'static str) -> PathBuf {
        self.authority.directory(name, &Request { name, ..Request::CLIENT })
    }

    /// The result of `buildctl` with these arguments, run by this client.
    fn buildctl(&self, name: &'static str, args: &[&str]) -> Output {
        run(buildctl_tls(&self.proxy.addr(), &self.certificate(name)).args(args))
    }

    /// The result of a build of this client with more arguments.
    fn build(&self, name: &'static str, args: &[&str]) -> Output {
        let context = Context::busybox("RUN echo built");
        let command = buildctl_tls(&self.proxy.addr(), &self.certificate(name));
        let mut command = build(command, &context);
        run(command.env("DOCKER_CONFIG", self.registry.docker_config()).args(args))
    }
}

/// Fails unless the client prints the refusal as the error of its Solve, and no other error.
fn denied(output: &Output, what: &str) {
    let told = text(output);
    assert!(
        !output.status.success() && told.contains("PermissionDenied") && told.contains(what),
        "{told}"
    );
    for other in ["failed to receive status", "no such job", "failed to read dockerfile"] {
        assert!(!told.contains(other), "{told}");
    }
}

fn allowed(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_thing_is_refused_to_one_client_and_allowed_to_another() {
    let fixture = Fixture::start();
    let registry = &fixture.registry;
    let image = |path: &str| format!("type=image,name={},push=true", registry.image(path));
    let cache = format!("type=registry,ref={}", registry.image("own/cache:1"));
    let out = tempfile::tempdir().expect("a directory");
    let local = format!("type=local,dest={}", out.path().display());
    let oci = format!("type=oci,dest={}", out.path().join("oci").display());

    allowed(&fixture.build("strict", &["--output", &local]));
    allowed(&fixture.build("strict", &["--output", &image("own/app:1")]));
    denied(&fixture.build("strict", &["--output", &image("other/app:1")]), "may not push to");
    denied(&fixture.build("strict", &["--output", &oci]), "may not use the exporter `oci`");
    denied(
        &fixture.build("strict", &["--export-cache", &cache]),
        "may not use the cache exporter `registry`",
    );
    let network = ["--allow", "network.host"];
    denied(&fixture.build("strict", &network), "may not use the entitlement `network.host`");
    denied(&fixture.build("nobody", &[]), "client nobody may not use the pool");

    allowed(&fixture.build("ops", &["--output", &oci]));
    allowed(&fixture.build("ops", &["--output", &image("other/app:1")]));
    allowed(&fixture.build("ops", &["--export-cache", &cache]));
    allowed(&fixture.build("ops", &network));

    denied(&fixture.buildctl("strict", &["prune"]), "may not delete build caches");
    denied(&fixture.buildctl("strict", &["du"]), "may not list build caches");
    allowed(&fixture.buildctl("ops", &["du"]));
    let all = text(&fixture.buildctl("ops", &["debug", "histories"]));
    let own = text(&fixture.buildctl("strict", &["debug", "histories"]));
    assert!(all.lines().count() > own.lines().count() && own.lines().count() > 1, "{all}\n{own}");
    allowed(&fixture.buildctl("ops", &["prune"]));

    let sessions = fixture.proxy.records("stream rejected");
    assert!(sessions.iter().all(|record| record["reason"] == "denied"), "{sessions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_of_a_refused_build_reaches_no_daemon() {
    let daemon = FakeDaemon::start("f").await;
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let proxy = Builder::default().backend(&daemon.backend()).file(RULES);
    let proxy = proxy.args(&["--tls-dir", own.to_str().expect("UTF-8")]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let strict = authority.directory("strict", &Request { name: "strict", ..Request::CLIENT });
    let client = RawClient::connect_tls(&proxy.socket(), &strict).await;
    let mut sessions = Vec::new();
    // In each order, because the calls of a build race.
    for (build, session_first) in [("r1", true), ("r2", false)] {
        let oci = Exporter { r#type: "oci".into(), ..Default::default() };
        let request = wire::encode(&SolveRequest {
            r#ref: build.into(),
            session: build.into(),
            exporters: vec![oci],
            ..Default::default()
        });
        let path = "/moby.buildkit.v1.Control/Solve";
        let (session, solve) = if session_first {
            let session = client.session(build).await;
            (session, client.send(path, &[], request).await)
        } else {
            let solve = client.send(path, &[], request).await;
            (client.session(build).await, solve)
        };
        let refused = solve.ended().await;
        assert_eq!((refused.code(), refused.marker()), (Some(7), Some("denied")), "{refused:?}");
        sessions.push(session);
    }
    // A session that no build names gets a daemon after a while. These two sessions would have had one by then.
    let _alone = client.session("alone").await;
    let seen = eventually("the later session comes to the daemon", Duration::from_secs(30), || {
        Some(daemon.seen("Session")).filter(|seen| !seen.is_empty())
    });
    let ids: Vec<_> = seen.iter().map(Seen::id).collect();
    assert_eq!(ids, ["alone"]);
    assert!(daemon.seen("Solve").is_empty(), "{:?}", daemon.seen("Solve"));
    // They end when their client sends no more.
    for mut session in sessions {
        session.upload.send_data(Bytes::new(), true).expect("it is open");
        assert_eq!(session.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_runs_no_more_builds_at_once_than_it_may() {
    let fixture = Fixture::start();
    let context = Context::busybox("RUN until test -e /go; do sleep 0.1; done");
    let command = buildctl_tls(&fixture.proxy.addr(), &fixture.certificate("strict"));
    let mut command = build(command, &context);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    eventually("the build runs", Duration::from_secs(20), || {
        let builds = fixture.proxy.status()["builds"].as_array().map_or(0, Vec::len);
        (builds == 1).then_some(())
    });
    let status = fixture.proxy.status();
    assert_eq!(status["builds"][0]["identity"], "strict", "{status}");
    let second = fixture.build("strict", &[]);
    assert!(text(&second).contains("client strict may run 1 builds at once"), "{}", text(&second));
    allowed(&fixture.build("ops", &[]));
    running.kill().expect("it runs");
    running.wait().expect("it has ended");
    eventually("the build is gone", Duration::from_secs(20), || {
        fixture.proxy.status()["builds"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    allowed(&fixture.build("strict", &[]));
}

#[test]
fn explain_access_tells_what_a_certificate_would_be_and_may_do() {
    let authority = Authority::new("of clients");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), RULES).expect("written");
    let explain = |certificate: Option<PathBuf>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
        command.args(["explain-access", "--backend", "tcp://b:1", "--config"]).arg(file.path());
        certificate.iter().for_each(|file| {
            command.arg("--certificate").arg(file);
        });
        run(&mut command)
    };
    let spiffe = Request { names: &["spiffe://example.org/ci"], ..Request::CLIENT };
    let told = text(&explain(Some(authority.directory("spiffe", &spiffe).join("cert.pem"))));
    for line in [
        "name             spiffe://example.org/ci\nfrom             spiffe\nrule             2\n",
        "operations       build\nhistory          own\ncontent          own\nentitlements     none\n",
        "pools            any\nexporters        local, image\ncache-exporters  inline\npush             */own/*\n",
        "max-builds       1\nweight           1\n",
    ] {
        assert!(told.contains(line), "{line}\n{told}");
    }
    let other =
        text(&explain(Some(authority.directory("other", &Request::CLIENT).join("tls.crt"))));
    assert!(
        other.contains("name             client\n") && other.contains("it may do nothing"),
        "{other}"
    );
    let none = text(&explain(None));
    assert!(
        none.contains("a client without a certificate") && none.contains("pools            none"),
        "{none}"
    );
    let key = explain(Some(authority.directory("other", &Request::CLIENT).join("tls.key")));
    assert_eq!(key.status.code(), Some(1));
    assert!(text(&key).contains("the certificate cannot be read"), "{}", text(&key));
}
