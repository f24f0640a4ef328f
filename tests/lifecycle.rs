//! Daemons die and return, and the proxy drains: nothing hangs, and each error names who is at fault.

mod support;

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl_build, is_running, run, succeed, text},
    eventually,
    frames::{PREFACE, SETTINGS},
    free_port,
    proxy::{Builder, Proxy},
    tools::tool,
};

/// Waits until the proxy lists a running build, and returns the build's backend.
///
/// The probes of a client are no builds, but for a moment they count as load.
fn running_on(proxy: &Proxy, fleet: &[Buildkitd]) -> usize {
    eventually("a build runs", Duration::from_secs(20), || {
        let status = proxy.status();
        let backend = status["builds"][0]["backend"].as_str()?;
        fleet.iter().position(|daemon| daemon.name == backend)
    })
}

#[test]
fn a_daemon_that_dies_is_named_and_the_next_build_goes_elsewhere() {
    let mut fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("consistent-hash").start();
    let context = Context::busybox("RUN sleep 5003");
    let mut build = buildctl_build(&proxy.addr(), &context);
    build.args(["--opt", "buildkit-lb-key=same"]).stderr(Stdio::piped()).stdout(Stdio::piped());
    let client = build.spawn().expect("buildctl runs");
    let victim = running_on(&proxy, &fleet);
    eventually("the step runs", Duration::from_secs(30), || is_running("sleep 5003").then_some(()));
    fleet[victim].kill();
    let output = client.wait_with_output().expect("ends");
    let told = text(&output);
    assert_eq!(output.status.code(), Some(1));
    let name = fleet[victim].name.clone();
    assert!(told.contains("Unavailable") && told.contains(&format!("backend {name} ")), "{told}");

    let quick = Context::busybox("RUN echo next");
    let mut next = buildctl_build(&proxy.addr(), &quick);
    succeed(next.args(["--opt", "buildkit-lb-key=same"]));
    let records = proxy.records("build ended");
    let record = records.last().expect("a build");
    assert_eq!(record["code"], "OK");
    assert_ne!(record["backend"], name.as_str());
    let lost = proxy.metric("buildkit_lb_upstream_errors_total", &["reason=\"lost\""]);
    assert!(lost >= 1.0);

    fleet[victim].restart();
    let state = format!("backend=\"{name}\",state=\"ready\"");
    eventually("the daemon is used again", Duration::from_secs(40), || {
        (proxy.metric("buildkit_lb_backend_state", &[&state]) > 0.0).then_some(())
    });
    // New projects are warm nowhere. The home of one of them is this backend.
    let mut keys = 0..20;
    eventually("a build goes there", Duration::from_secs(60), || {
        let key = format!("buildkit-lb-key=new-{}", keys.next().expect("a home among 20 keys"));
        succeed(buildctl_build(&proxy.addr(), &quick).args(["--opt", &key]));
        let records = proxy.records("build ended");
        (records.last().expect("a build")["backend"] == name.as_str()).then_some(())
    });
}

#[test]
fn without_a_daemon_a_build_that_may_not_wait_is_refused_at_once() {
    let gone = format!("gone=tcp://127.0.0.1:{}", free_port());
    let proxy = Builder::default().backend(&gone).args(&["--max-wait", "0s"]).start();
    let context = Context::busybox("RUN true");
    let started = Instant::now();
    let output = run(&mut buildctl_build(&proxy.addr(), &context));
    let (took, told) = (started.elapsed(), text(&output));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(output.status.code(), Some(1));
    for part in ["Unavailable", "no backend is available", "backend gone", "refused"] {
        assert!(told.contains(part), "{part} is missing in: {told}");
    }
    assert_eq!(proxy.admin("GET", "/readyz").0, 503);
    assert_eq!(proxy.admin("GET", "/livez").0, 200);
    assert!(proxy.metric("buildkit_lb_rejected_total", &["no_backend"]) >= 1.0);
}

#[test]
fn a_drain_waits_for_the_build_and_serves_its_later_calls() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).start();
    eventually("the proxy is ready", Duration::from_secs(5), || {
        (proxy.admin("GET", "/readyz").0 == 200).then_some(())
    });
    // Two stages that need the frontend's later calls (LLBBridge/Return) after the signal.
    let context = Context::busybox("RUN sleep 4\nRUN echo after-the-signal");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let client = build.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    running_on(&proxy, &fleet);
    proxy.process.signal("TERM");
    eventually("the proxy is unready", Duration::from_secs(20), || {
        (proxy.admin("GET", "/readyz").0 == 503).then_some(())
    });
    assert_eq!(proxy.metric("buildkit_lb_drain_in_progress", &[]), 1.0);
    // The proxy is unready before it stops accepting, so that load balancers know no later than clients.
    eventually("a draining proxy accepts nobody", Duration::from_secs(5), || {
        std::net::TcpStream::connect(proxy.socket()).err()
    });
    let output = client.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("after-the-signal"));
    let status = proxy.process.wait(Duration::from_secs(10));
    assert_eq!(status.code(), Some(0), "{}", proxy.process.log());
}

#[test]
fn a_proxy_told_to_end_is_unready_at_once_and_accepts_until_load_balancers_have_noticed() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).args(&["--drain-delay", "1h"]).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    proxy.process.signal("TERM");
    eventually("the proxy is unready", Duration::from_secs(20), || {
        (proxy.admin("GET", "/readyz") == (503, "draining\n".to_owned())).then_some(())
    });
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo late")));
    proxy.process.signal("TERM");
    assert_eq!(proxy.process.wait(Duration::from_secs(5)).code(), Some(0));

    let mut proxy = Proxy::in_front_of(&fleet).args(&["--drain-delay", "1s"]).start();
    proxy.process.signal("TERM");
    eventually("the proxy accepts nobody any more", Duration::from_secs(10), || {
        std::net::TcpStream::connect(proxy.socket()).err()
    });
    assert_eq!(proxy.process.wait(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn a_hangup_ends_neither_the_proxy_nor_a_build() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 2; echo still-here");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let client = build.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    running_on(&proxy, &fleet);
    proxy.process.signal("HUP");
    let output = client.wait_with_output().expect("ends");
    assert!(output.status.success() && text(&output).contains("still-here"));
    assert!(proxy.process.is_running());
    assert_eq!(proxy.records("SIGHUP ignored, the configuration is read only at start").len(), 1);
}

#[test]
fn a_drain_without_builds_ends_at_once_and_a_second_signal_cuts() {
    let fleet = Buildkitd::fleet(1);
    let mut idle = Proxy::in_front_of(&fleet).start();
    idle.process.signal("TERM");
    assert_eq!(idle.process.wait(Duration::from_secs(5)).code(), Some(0));

    let mut busy = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 5001");
    let mut build = buildctl_build(&busy.addr(), &context);
    let client = build.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
    running_on(&busy, &fleet);
    busy.process.signal("TERM");
    eventually("it drains", Duration::from_secs(10), || {
        (!busy.records("draining").is_empty()).then_some(())
    });
    assert!(busy.process.is_running());
    busy.process.signal("TERM");
    assert_eq!(busy.process.wait(Duration::from_secs(5)).code(), Some(0));
    let output = client.wait_with_output().expect("ends");
    assert!(!output.status.success());
}

#[test]
fn a_drain_waits_for_nobody_who_can_have_no_build() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).start();
    let silent = std::net::TcpStream::connect(proxy.socket()).expect("accepted");
    // The client sends its preface, and then answers neither the GOAWAY nor the PING behind it.
    let mut deaf = std::net::TcpStream::connect(proxy.socket()).expect("accepted");
    let preface = [PREFACE, &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]].concat();
    deaf.write_all(&preface).expect("sent");
    let context = Context::busybox("RUN sleep 4; echo not-cut");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let client = build.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    running_on(&proxy, &fleet);
    eventually("all are served", Duration::from_secs(5), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 3.0).then_some(())
    });
    proxy.process.signal("TERM");
    eventually("the two are cut beside the build", Duration::from_secs(20), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 1.0).then_some(())
    });
    let output = client.wait_with_output().expect("ends");
    assert!(output.status.success() && text(&output).contains("not-cut"), "{}", text(&output));
    assert_eq!(proxy.process.wait(Duration::from_secs(20)).code(), Some(0));
    drop((silent, deaf));
}

#[test]
fn a_drain_ends_at_its_timeout() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).args(&["--drain-timeout", "1s"]).start();
    let context = Context::busybox("RUN sleep 5002");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let client = build.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
    running_on(&proxy, &fleet);
    proxy.process.signal("TERM");
    assert_eq!(proxy.process.wait(Duration::from_secs(6)).code(), Some(0));
    assert!(!client.wait_with_output().expect("ends").status.success());
}

#[test]
fn a_cordoned_daemon_finishes_its_builds_and_takes_no_new_one() {
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 6; echo finished-anyway");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let client = build.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let busy = running_on(&proxy, &fleet);
    let path = format!("/backends/{}/cordon", fleet[busy].name);
    let (code, told) = proxy.control("POST", &path);
    assert!(code == 200 && told.contains("cordoned"), "{told}");
    assert_eq!(proxy.control("POST", "/backends/nobody/cordon").0, 404);
    let quick = Context::busybox("RUN echo quick");
    for _ in 0..3 {
        succeed(&mut buildctl_build(&proxy.addr(), &quick));
        let record = proxy.records("build ended").pop().expect("a build");
        assert_ne!(record["backend"], fleet[busy].name.as_str());
    }
    let output = client.wait_with_output().expect("ends");
    assert!(output.status.success() && text(&output).contains("finished-anyway"));
    assert_eq!(proxy.control("DELETE", &path).0, 200);
    assert!(proxy.admin("GET", "/status.json").1.contains("\"state\":\"ready\""));
}

#[test]
fn a_daemon_about_to_stop_waits_for_its_builds_with_curl() {
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 4; echo finished-anyway");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let client = build.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let busy = running_on(&proxy, &fleet);
    let name = &fleet[busy].name;
    let (_code, builds) = proxy.admin("GET", &format!("/backends/{name}/builds"));
    let builds: serde_json::Value = serde_json::from_str(&builds).expect("JSON");
    assert_eq!(builds, serde_json::json!({"backend": name, "builds": 1}));
    let drain = |query: &str| {
        let mut curl = Command::new(tool("curl"));
        curl.args(["--silent", "--fail-with-body", "--request", "POST", "--unix-socket"]);
        curl.arg(proxy.control_socket());
        run(curl.arg(format!("http://proxy/backends/{name}/drain{query}")))
    };
    assert!(!drain("?timeout=100ms").status.success(), "a build runs");
    assert_eq!(proxy.control("POST", &format!("/backends/{name}/drain?timeout=x")).0, 400);
    assert_eq!(proxy.control("POST", "/backends/nobody/drain").0, 404);
    let hook = drain("?timeout=2m");
    assert!(hook.status.success() && text(&hook).contains("is drained"), "{}", text(&hook));
    let ended = proxy.records("build ended");
    assert_eq!(ended.len(), 1, "the hook outlasts the build");
    let output = client.wait_with_output().expect("ends");
    assert!(output.status.success() && text(&output).contains("finished-anyway"));
    let quick = Context::busybox("RUN echo quick");
    for _ in 0..3 {
        succeed(&mut buildctl_build(&proxy.addr(), &quick));
        let record = proxy.records("build ended").pop().expect("a build");
        assert_ne!(record["backend"], name.as_str(), "it stays cordoned");
    }
    assert_eq!(proxy.metric("buildkit_lb_backend_drains_total", &["drained"]), 1.0);
    assert_eq!(proxy.control("DELETE", &format!("/backends/{name}/cordon")).0, 200);
}

#[test]
fn a_drain_that_nobody_renews_ends_and_an_operators_cordon_stays() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let state = |state: &str| proxy.metric("buildkit_lb_backend_state", &[state]) == 1.0;
    let becomes = |word: &str| {
        let limit = Duration::from_secs(20);
        eventually(word, limit, || state(&format!("\"{word}\"")).then_some(()));
    };
    becomes("ready");
    let name = &fleet[0].name;
    let drain = format!("/backends/{name}/drain?timeout=10s&lease=200ms");
    assert_eq!(proxy.control("POST", &drain).0, 200);
    becomes("ready");
    assert_eq!(proxy.records("drain lease expired, cordon ended").len(), 1);
    // The same with a cordon in addition: the drain's cordon ends, the operator's stays.
    assert_eq!(proxy.control("POST", &format!("/backends/{name}/cordon")).0, 200);
    assert_eq!(proxy.control("POST", &drain).0, 200);
    eventually("the second lease is over", Duration::from_secs(20), || {
        (proxy.records("drain lease expired, cordon ended").len() == 2).then_some(())
    });
    assert!(state("\"cordoned\""));
    for odd in ["lease=soon", "lease=2h"] {
        assert_eq!(proxy.control("POST", &format!("/backends/{name}/drain?{odd}")).0, 400, "{odd}");
    }
}

#[test]
fn unix_sockets_work_on_both_sides() {
    let fleet = Buildkitd::fleet(1);
    let directory = tempfile::tempdir().expect("a directory");
    let socket = format!("unix://{}/lb.sock", directory.path().display());
    let inner = Proxy::in_front_of(&fleet).args(&["--listen", &socket]).start();
    let outer = Builder::default().backend(&format!("inner={socket}")).start();
    let context = Context::busybox("RUN echo unix");
    for addr in [&socket, &outer.addr()] {
        succeed(&mut buildctl_build(addr, &context));
    }
    // The outer proxy asks its backend for its capabilities with a build of its own that has no session.
    let mut told = inner.records("build ended");
    told.retain(|record| record["session"] != "");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().all(|record| record["client"].is_null()), "{told:?}");
    let told = outer.records("build ended");
    assert_eq!(told[0]["client"], "127.0.0.1", "{told:?}");
}

#[test]
fn the_status_names_the_client_of_a_build() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 5003");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let mut client = build.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
    running_on(&proxy, &fleet);
    let status = proxy.status();
    client.kill().expect("it runs");
    let _ = client.wait();
    assert_eq!(status["builds"][0]["client"], "127.0.0.1", "{status}");
}
