//! A fleet of daemons with different versions, as during an upgrade, promises only what all of them can do.

mod support;

use std::{sync::OnceLock, time::Duration};

use support::{
    buildkitd::Buildkitd,
    client::{Buildx, Context, buildctl, buildctl_build, run, succeed, text},
    eventually,
    proxy::Proxy,
};

/// A daemon of the current version, one of v0.16, and a proxy in front of both.
#[derive(Debug)]
struct Setup {
    new: Buildkitd,
    old: Buildkitd,
    proxy: Proxy,
}

fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| {
        let (new, old) = (Buildkitd::start("new"), Buildkitd::start_old("old"));
        let proxy = Proxy::in_front_of([&new, &old]).policy("random").start();
        proxy.wait_ready(2, Duration::from_secs(10));
        Setup { new, old, proxy }
    })
}

#[test]
fn versions_are_shown_and_a_difference_is_told_once() {
    let setup = setup();
    let status = setup.proxy.status();
    for (name, version) in [("new", "v0.32"), ("old", "v0.16.0")] {
        let backends = status["backends"].as_array().expect("a list");
        let backend = backends.iter().find(|backend| backend["name"] == name).expect("there");
        let told = backend["buildkit_version"].as_str().expect("a version");
        assert!(told.starts_with(version), "{name}: {told}");
        let labels = [format!("backend=\"{name}\""), format!("version=\"{told}\"")];
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        assert_eq!(setup.proxy.metric("buildkit_lb_backend_info", &labels), 1.0);
    }
    let differ = || setup.proxy.records("versions of backends differ");
    let told = eventually("the warning", Duration::from_secs(5), || differ().pop());
    assert!(told["versions"].as_str().expect("text").starts_with("v0.16.0, v0.32"), "{told}");
    assert_eq!(differ().len(), 1);
}

#[test]
fn the_oldest_daemon_answers_what_a_client_asks_before_it_builds() {
    let setup = setup();
    for _ in 0..8 {
        let info = succeed(buildctl(&setup.proxy.addr()).args(["debug", "info"]));
        assert!(info.contains("v0.16.0"), "{info}");
    }
    let workers = |addr: &str| succeed(buildctl(addr).args(["debug", "workers"]));
    let old = workers(&setup.old.addr());
    assert_ne!(old, workers(&setup.new.addr()));
    for _ in 0..8 {
        assert_eq!(workers(&setup.proxy.addr()), old);
    }
}

#[test]
fn a_client_uses_nothing_that_only_some_daemons_can() {
    let setup = setup();
    let context = Context::busybox("RUN true");
    let path = context.path().display().to_string();
    // v0.16 knows several outputs, but no limit of the space that a prune leaves.
    let limited = ["prune", "-f", "--max-used-space", "10gb"];
    let direct = run(&mut Buildx::new(&setup.old.addr()).command(&limited));
    assert!(!direct.status.success(), "the daemon has learnt it: {}", text(&direct));
    let proxied = Buildx::new(&setup.proxy.addr());
    for _ in 0..8 {
        let refused = run(&mut proxied.command(&limited));
        assert_eq!((refused.status.code(), text(&refused)), (direct.status.code(), text(&direct)));
    }
    // A feature that all daemons have works on any of them.
    for _ in 0..4 {
        succeed(&mut proxied.command(&["build", "-o", "type=cacheonly", &path]));
    }
}

#[test]
fn a_limit_that_a_daemon_does_not_know_costs_it_no_cache() {
    let (new, old) = (Buildkitd::start("new"), Buildkitd::start_old("old"));
    let proxy = Proxy::in_front_of([&new, &old]).start();
    proxy.wait_ready(2, Duration::from_secs(10));
    let context = Context::busybox("RUN echo kept > /kept");
    for daemon in [&new, &old] {
        succeed(&mut buildctl_build(&daemon.addr(), &context));
    }
    let usage = |daemon: &Buildkitd| succeed(buildctl(&daemon.addr()).arg("du"));
    let before = usage(&old);
    // In MB: less than anything takes, so that a daemon that obeys keeps nothing either.
    let limit = ["prune", "--keep-storage", "0.000001"];
    let pruned = run(buildctl(&proxy.addr()).args(limit));
    assert_eq!(usage(&old), before);
    assert_ne!(usage(&new), before);
    assert!(!usage(&new).contains("kept"), "{}", usage(&new));
    assert_eq!(pruned.status.code(), Some(1));
    assert!(text(&pruned).contains("not sent to old (v0.16.0)"), "{}", text(&pruned));
    let alone = Proxy::in_front_of([&old]).start();
    alone.wait_ready(1, Duration::from_secs(10));
    let refused = run(buildctl(&alone.addr()).args(limit));
    assert_eq!((refused.status.code(), usage(&old)), (Some(1), before));
    assert!(text(&refused).contains("not sent to old (v0.16.0)"), "{}", text(&refused));
    // The old daemon does what it knows.
    succeed(buildctl(&alone.addr()).args(["prune", "--all"]));
    assert!(!usage(&old).contains("kept"));
}
