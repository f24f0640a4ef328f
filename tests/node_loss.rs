//! Nodes that vanish without closing a connection: all packets are lost from then on.

mod support;

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl_build, run, succeed, text},
    eventually,
    kubernetes::pod::{HOST, PodDaemon},
    proxy::{Builder, Proxy},
    tools::tool,
};

/// The keepalive of TCP takes a minute; the rest is for a busy machine.
const FOUND: Duration = Duration::from_secs(100);

/// The backends of the running builds.
fn running(proxy: &Proxy) -> Vec<String> {
    let status = proxy.status();
    let builds = status["builds"].as_array().expect("a list").iter();
    builds.map(|build| build["backend"].as_str().expect("a name").to_owned()).collect()
}

fn start_build(proxy: &Proxy, context: &Context) -> Child {
    let mut build = buildctl_build(&proxy.addr(), context);
    build.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("buildctl runs")
}

#[test]
fn a_daemon_whose_node_is_lost_is_named_and_the_others_go_on() {
    let daemons = ["lost", "stays"].map(PodDaemon::start);
    let backend = |name: &str, daemon: &PodDaemon| format!("{name}=tcp://{}:1234", daemon.ip());
    let proxy = Builder::default()
        .policy("least-builds")
        .backend(&backend("lost", &daemons[0]))
        .backend(&backend("stays", &daemons[1]))
        .start();
    proxy.wait_ready(2, Duration::from_secs(10));
    // Both daemons have a build, because the second build goes to the daemon that has none.
    let context = Context::busybox("RUN sleep 100000");
    let mut clients = Vec::new();
    for count in 1..=2 {
        clients.push(start_build(&proxy, &context));
        eventually("a build runs", Duration::from_secs(20), || {
            (running(&proxy).len() == count).then_some(())
        });
    }
    let places = running(&proxy);
    let victim = places.iter().position(|name| name == "lost").expect("a build is there");
    let mut other = clients.remove(1 - victim);
    let client = clients.remove(0);
    daemons[0].cut_off();
    let began = Instant::now();
    // New builds run on the daemon that still answers, long before the proxy gives up the lost build.
    let quick = Context::busybox("RUN echo quick");
    for _ in 0..3 {
        succeed(&mut buildctl_build(&proxy.addr(), &quick));
    }
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
    eventually("probes are not answered", Duration::from_secs(50), || {
        let state = ["\"lost\"", "state=\"unhealthy\""];
        (proxy.metric("buildkit_lb_backend_state", &state) == 1.0).then_some(())
    });
    let output = client.wait_with_output().expect("ends");
    let (took, told) = (began.elapsed(), text(&output));
    eprintln!("the client was told after {took:?}");
    assert!(took < FOUND, "{took:?}");
    assert_eq!(output.status.code(), Some(1));
    assert!(told.contains("Unavailable") && told.contains("backend lost "), "{told}");
    assert_eq!(running(&proxy), ["stays"]);
    assert_eq!(other.try_wait().expect("a state"), None, "the other build goes on");
    other.kill().expect("killed");
    other.wait().expect("ended");
}

#[test]
fn the_build_of_a_client_whose_node_is_lost_is_cancelled() {
    let daemon = Buildkitd::start("d0");
    let node = PodDaemon::start("agent");
    let file = format!("listen = '{HOST}:0'\nbackend = '{}'\n", daemon.backend());
    let proxy = Builder::default().file(&file).start();
    let context = Context::busybox("RUN sleep 200000");
    let build = buildctl_build(&proxy.addr(), &context);
    let program = build.get_program().to_str().expect("UTF-8").to_owned();
    let mut args = vec![program.as_str()];
    args.extend(build.get_args().map(|arg| arg.to_str().expect("UTF-8")));
    let mut client = node.inside(&args);
    let mut client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
    let steps = || run(Command::new(tool("pgrep")).args(["-f", "sleep 200000"])).stdout;
    // Until its step runs, the build needs its client's files, and the daemon would give it up before the proxy does.
    eventually("the build's step runs", Duration::from_secs(60), || {
        (!steps().is_empty()).then_some(())
    });
    assert_eq!(running(&proxy), ["d0"]);
    node.cut_off();
    eventually("the build is given up", FOUND, || running(&proxy).is_empty().then_some(()));
    let canceled = |line: &Value| line["code"] == "Cancelled";
    eventually("its record is written", Duration::from_secs(60), || {
        proxy.records("build ended").iter().any(canceled).then_some(())
    });
    eventually("the daemon has ended its step", Duration::from_secs(60), || {
        steps().is_empty().then_some(())
    });
    client.kill().expect("killed");
    client.wait().expect("ended");
}
