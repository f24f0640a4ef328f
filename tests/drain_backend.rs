//! `buildkit-lb drain-backend`, which the pod or machine of a daemon runs before the daemon ends.

mod support;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use support::{
    buildkitd::Buildkitd,
    child::Guarded,
    client::{Context, buildctl_build, run, succeed, text},
    eventually, free_port,
    proxy::Proxy,
};

const TOKEN: &str = "5d41402abc4b2a76b9719d911017c592";

fn cordoned(proxy: &Proxy) -> f64 {
    proxy.metric("buildkit_lb_backend_state", &["\"cordoned\""])
}

#[test]
fn a_daemon_waits_for_its_builds_at_every_proxy() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let (token, done) = (file("token"), file("done"));
    fs::write(&token, TOKEN).expect("written");
    fs::write(&done, "").expect("written");
    let fleet = Buildkitd::fleet(2);
    let busy = Proxy::in_front_of(&fleet).args(&["--admin-token-file", &token]).start();
    let idle = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 6; echo finished-anyway");
    let mut build = buildctl_build(&busy.addr(), &context);
    let client = build.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let name = eventually("a build runs", Duration::from_secs(20), || {
        busy.status()["builds"][0]["backend"].as_str().map(str::to_owned)
    });
    let control = format!("unix://{}", idle.control_socket().display());
    let proxies = format!("{},{control}", busy.admin_socket());
    let args = ["drain-backend", &name, "--proxy", &proxies, "--token-file", &token];
    let own = ["--address", "127.0.0.1,::1", "--at-signal", "--done-file", &done];
    let mut drain =
        Guarded::start(env!("CARGO_BIN_EXE_buildkit-lb").as_ref(), &[&args[..], &own].concat());
    eventually("it waits for its signal", Duration::from_secs(10), || {
        drain.log().contains("waiting for the signal").then_some(())
    });
    assert!(!Path::new(&done).exists(), "what another daemon left");
    assert_eq!((cordoned(&busy), cordoned(&idle)), (0.0, 0.0));
    drain.signal("TERM");
    for proxy in [&busy, &idle] {
        eventually("the proxy sends no more builds", Duration::from_secs(10), || {
            (cordoned(proxy) == 1.0).then_some(())
        });
        succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo quick")));
        let record = proxy.records("build ended").pop().expect("a build");
        assert_ne!(record["backend"], name.as_str());
    }
    assert!(drain.is_running() && !Path::new(&done).exists(), "a build runs: {}", drain.log());
    assert_eq!(drain.wait(Duration::from_secs(60)).code(), Some(0), "{}", drain.log());
    assert!(Path::new(&done).exists());
    assert_eq!(busy.records("build ended").len(), 2, "it outlasts the build");
    let output = client.wait_with_output().expect("ends");
    assert!(text(&output).contains("finished-anyway"), "{}", text(&output));
    assert_eq!((cordoned(&busy), cordoned(&idle)), (1.0, 1.0));
    assert!(!drain.log().contains(TOKEN));
}

#[test]
fn builds_that_are_left_and_proxies_that_are_away_are_a_failure() {
    let directory = tempfile::tempdir().expect("a directory");
    let done = directory.path().join("done");
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let context = Context::busybox("RUN sleep 5003");
    let mut build = buildctl_build(&proxy.addr(), &context);
    let mut client = build.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
    eventually("a build runs", Duration::from_secs(20), || {
        proxy.status()["builds"][0]["backend"].as_str().map(str::to_owned)
    });
    let control = format!("unix://{}", proxy.control_socket().display());
    let away = format!("127.0.0.1:{}", free_port());
    for (proxy, told) in [(control, "still has builds"), (away, "giving up")] {
        let mut drain = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
        drain.args(["drain-backend", "d0", "--timeout", "12s", "--proxy", &proxy]);
        let output = run(drain.arg("--done-file").arg(&done));
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(told), "{}", text(&output));
        fs::remove_file(&done).expect("whoever waits is told all the same");
    }
    client.kill().expect("killed");
    client.wait().expect("ended");
}
