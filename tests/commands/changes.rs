//! `cordon`, `uncordon` and `drain` in front of real daemons.

use std::fs;

use buildkit_lb::snapshot::{Backend, EndedBuild};

use crate::{
    LongBuild, WAIT, command, operate, printed,
    support::{
        buildkitd::Buildkitd,
        child::Guarded,
        client::{Context, buildctl_build, succeed, text},
        eventually,
        proxy::Proxy,
    },
};

const TOKEN: &str = "9b74c9897bac770ffc029102a200c5de";

/// The states of the backends in the table that `args` print.
fn state(proxy: &Proxy, name: &str) -> String {
    let told = printed(proxy, &["backends", "--output", "json"]);
    let backends: Vec<Backend> = serde_json::from_str(&told).expect("JSON");
    let found = backends.into_iter().find(|backend| backend.name == name);
    found.expect("the backend").state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_gets_no_builds_while_it_is_cordoned_and_a_drain_waits_for_its_builds() {
    let directory = tempfile::tempdir().expect("a directory");
    let token = directory.path().join("token");
    fs::write(&token, TOKEN).expect("written");
    let token = token.to_str().expect("UTF-8");
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).args(&["--admin-token-file", token]).start();
    proxy.wait_ready(2, WAIT);
    let control = format!("unix://{}", proxy.control_socket().display());

    let told = printed(&proxy, &["cordon", "d0", "--token-file", token]);
    assert!(told.lines().count() == 2 && told.contains("d0       cordoned"), "{told}");
    for number in 0..3 {
        let context = Context::busybox(&format!("RUN echo {number}"));
        succeed(&mut buildctl_build(&proxy.addr(), &context));
    }
    let ended = proxy.records("build ended");
    assert!(ended.iter().all(|record| record["backend"] == "d1"), "{ended:?}");
    recent_builds_are_those_of(&proxy, "d1");
    let told = printed(&proxy, &["uncordon", "d0", "--admin", &control, "--output", "json"]);
    let backends: Vec<Backend> = serde_json::from_str(&told).expect("JSON");
    assert_eq!((backends.len(), backends[0].state.as_str()), (1, "ready"));

    let build = LongBuild::through(&proxy, "k");
    let name = eventually("the build runs", WAIT, || {
        proxy.status()["builds"][0]["backend"].as_str().map(str::to_owned)
    });
    let args = ["drain", &name, "--admin", &control];
    let output = operate(&proxy, &[&args[..], &["--timeout", "300ms", "--lease", "1ms"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("builds left: 1"), "{}", text(&output));
    let mut drain = Guarded::start(env!("CARGO_BIN_EXE_buildkit-lb").as_ref(), &args);
    eventually("the backend is cordoned", WAIT, || {
        (state(&proxy, &name) == "cordoned").then_some(())
    });
    assert!(drain.is_running(), "a build runs: {}", drain.log());
    drop(build);
    assert_eq!(drain.wait(WAIT).code(), Some(0), "{}", drain.log());
    assert!(drain.log().contains(&format!("{name}       cordoned")), "{}", drain.log());
}

/// Checks that `builds --recent` prints three builds of `backend` that succeeded.
fn recent_builds_are_those_of(proxy: &Proxy, backend: &str) {
    let table = printed(proxy, &["builds", "--recent"]);
    let rows = table.lines().filter(|row| row.contains(backend) && row.contains("  OK  "));
    let told = printed(proxy, &["builds", "--recent", "--output", "json"]);
    let listed: Vec<EndedBuild> = serde_json::from_str(&told).expect("JSON");
    assert_eq!((rows.count(), listed.len()), (3, 3), "{table}");
    for ended in listed {
        assert_eq!((ended.build.backend.as_str(), ended.code.as_str()), (backend, "OK"));
        assert!(table.contains(&ended.build.r#ref), "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_chosen_by_its_name() {
    let file = "[[pool]]\nname = 'one'\nlisten = 'tcp://127.0.0.1:0'\nbackend = ['b=tcp://127.0.0.1:1']\n\
                [[pool]]\nname = 'two'\nlisten = 'tcp://127.0.0.1:0'\nbackend = ['b=tcp://127.0.0.1:1']\n";
    let proxy = crate::support::proxy::Builder::default().file(file).start();
    let control = format!("unix://{}", proxy.control_socket().display());
    let told = printed(&proxy, &["cordon", "b", "--pool", "two", "--admin", &control]);
    assert!(told.contains("b        cordoned"), "{told}");
    let told = printed(&proxy, &["backends"]);
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].starts_with("POOL  BACKEND  STATE"), "{told}");
    assert!(lines[1].starts_with("one   b        ") && !lines[1].contains("cordoned"), "{told}");
    assert!(lines[2].starts_with("two   b        cordoned"), "{told}");
    let told = text(&operate(&proxy, &["builds", "--pool", "three"]));
    assert!(told.contains("has no pool `three`, but one, two"), "{told}");
    let nobody = command(&proxy, &["cordon", "x", "--admin", &control]).output().expect("runs");
    assert!(text(&nobody).contains("404 Not Found: no backend is called x"), "{}", text(&nobody));
}
