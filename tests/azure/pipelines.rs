//! The pipelines build, push and find their cache on another daemon.

use std::{fs, path::Path, process::Command, time::Duration};

use regex::Regex;
use serde_json::Value;

use crate::{
    KIT, STEPS,
    agent::{Agent, scripts},
    fleet,
    names::names,
    registry,
    support::{
        certificates::{Authority, Request},
        client::{run, succeed, text},
        eventually,
        proxy::Proxy,
        tools::{shell, tool},
    },
    yaml,
};

/// The records of a proxy's builds that had a key, the oldest first.
fn keyed(proxy: &Proxy, count: usize) -> Vec<Value> {
    eventually("the builds' records", Duration::from_secs(5), || {
        let records = proxy.records("build ended").into_iter();
        let records: Vec<_> = records.filter(|record| record["key_source"] == "vcs").collect();
        (records.len() == count).then_some(records)
    })
}

/// Runs a pipeline on two agents. The second builds a new branch on a daemon that has never seen the project. Then
/// looks at what the registry has.
fn build_push_and_cache(client: &str) {
    let proxy = Proxy::in_front_of(&fleet()[1..]).start();
    let project = format!("web-{client}");
    let mut first = Agent::new(&project, "main").set("BUILDKIT_ADDR", &proxy.addr());
    let output = first.pipeline(client);
    assert!(output.status.success(), "{}", text(&output));
    let host = registry().host();
    let pushed = format!("{host} has {}", first.env["IMAGEDIGEST"]);
    assert!(text(&output).contains(&pushed) && pushed.contains("sha256:"), "{}", text(&output));
    let image = format!("shop/{project}");
    assert!(registry().manifest(&image, "4711").contains("manifest"));
    let cache = registry().manifest(&format!("cache/{image}"), "main");
    assert!(cache.contains("application/vnd.oci.image.manifest.v1+json"), "{cache}");

    let record = keyed(&proxy, 1).remove(0);
    assert_eq!(record["key"], format!("dev.azure.com/contoso/shop/_git/{project}"));
    let home = record["backend"].as_str().expect("a name").to_owned();
    assert_eq!(proxy.control("POST", &format!("/backends/{home}/cordon")).0, 200);

    let branch = "feature/#12 gr\u{fc}n & more";
    let mut second = Agent::new(&project, branch).set("BUILDKIT_ADDR", &proxy.addr());
    second = second.set("BUILD_BUILDID", "4712");
    let output = second.pipeline(client);
    assert!(output.status.success(), "{}", text(&output));
    let record = keyed(&proxy, 2).remove(1);
    assert_ne!(record["backend"], home);
    let cached = Regex::new(r"(?m)^#(\d+) CACHED$").expect("valid");
    let step = Regex::new(&format!(r"(?m)^#(\d+) \[.*RUN echo '{project}'")).expect("valid");
    let told = text(&output);
    let own = step.captures(&told).expect("the project's step is told")[1].to_owned();
    assert!(cached.captures_iter(&told).any(|found| found[1] == own), "{told}");
    registry().manifest(&image, "4712");
    let tag = shell(names("tag_of \"$1\""), &[]).args(["bash", branch]).output();
    let tag = String::from_utf8(tag.expect("bash runs").stdout).expect("ASCII");
    registry().manifest(&format!("cache/{image}"), tag.trim());
}

#[test]
fn a_buildctl_pipeline_pushes_and_finds_its_cache_on_another_daemon() {
    build_push_and_cache("buildctl");
}

#[test]
fn a_buildx_pipeline_pushes_and_finds_its_cache_on_another_daemon() {
    build_push_and_cache("buildx");
}

#[test]
fn a_fleet_that_asks_for_certificates_builds_for_both_clients() {
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let proxy = Proxy::in_front_of(&fleet()[1..]);
    let proxy = proxy.args(&["--tls-dir", own.to_str().expect("UTF-8")]).start();
    let client = authority.directory("client", &Request::CLIENT);
    // Each client has its own convention of file names.
    for (client_name, gone) in [("buildctl", "cert.pem"), ("buildx", "tls.crt")] {
        let directory = tempfile::tempdir().expect("a directory");
        succeed(Command::new(tool("cp")).arg("-a").arg(client.join(".")).arg(directory.path()));
        fs::remove_file(directory.path().join(gone)).expect("removed");
        let build = format!("{STEPS}/login.sh && {STEPS}/build-{client_name}.sh");
        let agent = || Agent::new("certificates", "main").set("BUILDKIT_ADDR", &proxy.addr());
        let bare = run(&mut agent().step(&build));
        assert!(!bare.status.success(), "{}", text(&bare));
        let directory = directory.path().display().to_string();
        succeed(&mut agent().set("BUILDKIT_TLS_DIR", &directory).step(&build));
    }
    let nowhere = Agent::new("certificates", "main").set("BUILDKIT_TLS_DIR", "/nonexistent");
    let build = format!("{STEPS}/login.sh && BUILDKIT_ADDR=x {STEPS}/build-buildctl.sh");
    assert!(text(&run(&mut nowhere.step(&build))).contains("has neither tls.crt nor cert.pem"));
}

#[test]
fn the_pipelines_call_steps_that_exist_and_differ_in_one() {
    let [buildctl, buildx] =
        ["buildctl", "buildx"].map(|name| scripts(&yaml(&format!("pipelines/{name}.yaml"))[0]));
    for script in buildctl.iter().chain(&buildx).filter(|script| script.contains(STEPS)) {
        let step = Path::new(script.trim()).strip_prefix(STEPS).expect("a step alone");
        assert!(Path::new(KIT).join("steps").join(step).exists(), "{script}");
    }
    let different = buildctl.iter().zip(&buildx).filter(|(a, b)| a != b).count();
    assert_eq!((buildctl.len(), different), (buildx.len(), 1));
}
