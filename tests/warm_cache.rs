//! A build of a project finds what earlier builds left in a cache.

mod support;

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl_build, run, text},
    proxy::Proxy,
};

const STEPS: usize = 3;

/// One build of a project, as buildx builds a checkout of it.
#[derive(Debug)]
struct Built {
    record: Value,
    cached: usize,
}

fn project(name: &str) -> Context {
    let context = Context::new(&format!(
        "FROM scratch\nCOPY busybox name /bin/\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
         RUN busybox echo {name} > /first\nRUN busybox cat /first > /second\n"
    ));
    context.write("name", name);
    context
}

fn build(proxy: &Proxy, name: &str, context: &Context) -> Built {
    let directory = tempfile::tempdir().expect("a directory");
    let reference = directory.path().join("ref");
    let mut command = buildctl_build(&proxy.addr(), context);
    command
        .arg(format!("--opt=vcs:source=https://git.example/team/{name}.git"))
        .arg(format!("--ref-file={}", reference.display()));
    let output = run(&mut command);
    let progress = text(&output);
    assert!(output.status.success(), "{progress}");
    let cached = progress.lines().filter(|line| line.ends_with(" CACHED")).count();
    let reference = std::fs::read_to_string(reference).expect("written by buildctl");
    Built { record: proxy.build(reference.trim()), cached }
}

#[test]
fn every_later_build_of_a_project_finds_all_its_steps_cached_on_its_first_daemon() {
    let fleet = Buildkitd::fleet(3);
    let proxy = Proxy::in_front_of(&fleet).policy("consistent-hash").start();
    let names = ["app", "web", "jobs", "tools", "docs"];
    let projects = names.map(|name| (name, project(name)));
    let mut homes: HashMap<&str, Value> = HashMap::new();
    for round in 0..3 {
        // One build at a time, so that load makes none of them spill.
        for (name, context) in &projects {
            let Built { record, cached } = build(&proxy, name, context);
            assert_eq!(
                (&record["key_source"], &record["outcome"]),
                (&"vcs".into(), &"home".into())
            );
            let home = homes.entry(name).or_insert_with(|| record["backend"].clone());
            assert_eq!(*home, record["backend"], "{name} in round {round}");
            assert_eq!(cached, if round == 0 { 0 } else { STEPS }, "{name} in round {round}");
        }
    }
    let used: BTreeSet<_> = homes.values().map(Value::to_string).collect();
    assert!(used.len() > 1, "five projects are spread: {homes:?}");
}
