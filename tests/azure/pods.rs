//! The pods of the agents: how they register, take jobs and end, and what their image has.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use regex::Regex;
use serde_json::Value;

use crate::{
    CURL, KIT, STEPS, executable, fleet,
    support::{
        child::Guarded,
        client::{Context, buildctl_build, succeed},
        eventually,
        proxy::Proxy,
        tools::tool,
    },
    yaml,
};

#[test]
fn agents_are_not_in_the_namespace_whose_pods_the_proxy_may_change() {
    let readme = fs::read_to_string(format!("{KIT}/README.md")).expect("a file");
    for name in ["agent-deployment", "agent-scaledjob", "agent-placeholder"] {
        for document in yaml(&format!("manifests/{name}.yaml")) {
            assert_eq!(document["metadata"]["namespace"], "azure-agents", "{name}");
        }
    }
    for command in [
        "create namespace azure-agents",
        "secret generic azure-pipelines --namespace azure-agents",
        "--subject system:serviceaccount:azure-agents:azure-agent",
    ] {
        assert!(readme.contains(command), "{command}");
    }
    let stray = Regex::new(r"(azure-agent|azure-pipelines)\b.*(--namespace|-n) buildkit\b");
    assert_eq!(stray.expect("valid").find(&readme).map(|found| found.as_str()), None);
}

#[test]
fn all_kinds_of_agent_run_the_same_pod() {
    let deployment = yaml("manifests/agent-deployment.yaml").remove(1);
    let job = yaml("manifests/agent-scaledjob.yaml").remove(1);
    let placeholder = yaml("manifests/agent-placeholder.yaml").remove(0);
    let pods = [&deployment["spec"], &job["spec"]["jobTargetRef"], &placeholder["spec"]]
        .map(|owner| &owner["template"]["spec"]);
    let containers = pods.map(|pod| &pod["containers"][0]);
    let alike = |of: &[&Value], keys: &[&str]| {
        for key in keys {
            assert!(!of[0][key].is_null(), "{key} is missing");
            assert!(of.iter().all(|one| one[key] == of[0][key]), "{key} differs");
        }
    };
    alike(&pods, &["securityContext", "serviceAccountName"]);
    alike(&containers, &["image", "securityContext", "resources"]);
    // A placeholder registers and never builds, so it has no client certificate.
    alike(&pods[..2], &["volumes"]);
    alike(&containers[..2], &["volumeMounts"]);
    assert_eq!(pods[2]["volumes"], serde_json::json!([pods[0]["volumes"][0]]));
    let start = fs::read_to_string(format!("{KIT}/agent/start")).expect("a file");
    for variable in containers.iter().flat_map(|c| c["env"].as_array().expect("a list")) {
        let name = variable["name"].as_str().expect("a name");
        assert!(start.contains(name), "the agent does not read {name}");
    }
}

/// Replacements of the agent's programs, which take no part in a real pool and write down their arguments.
#[derive(Debug)]
struct Pool {
    directory: tempfile::TempDir,
}

impl Pool {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("token"), "pat").expect("written");
        executable(&path("config.sh"), "#!/bin/sh\necho config \"$@\" >>told\n");
        // A job runs while the file `job` exists; otherwise the agent waits.
        let worker = "#!/bin/sh\ntouch working\nwhile [ -e job ]; do sleep 0.1; done\n";
        executable(&path("Agent.Worker"), worker);
        let run = "#!/bin/sh\necho run \"$@\" >>told\nmkdir -p _work/1\n\
                   while [ ! -e job ]; do sleep 0.1; done\n./Agent.Worker\necho done >>told\n";
        executable(&path("run.sh"), run);
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn told(&self) -> String {
        fs::read_to_string(self.path("told")).unwrap_or_default()
    }

    fn start(&self, env: &[&str]) -> Guarded {
        let directory = format!("AGENT_DIRECTORY={}", self.directory.path().display());
        let token = format!("AZP_TOKEN_FILE={}", self.path("token").display());
        let start = format!("{KIT}/agent/start");
        let url = "AZP_URL=https://dev.azure.com/contoso";
        let args = [&[url, "AZP_AGENT_NAME=pod-1", &directory, &token], env, &[&start]].concat();
        // The agent's image has this program.
        tool("pgrep");
        Guarded::start(&tool("env"), &args)
    }

    fn wait_for(&self, what: &str) {
        eventually(what, Duration::from_secs(20), || self.told().contains(what).then_some(()));
    }
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn an_agent_takes_one_job_and_leaves_the_pool() {
    let pool = Pool::new();
    fs::write(pool.path("job"), "").expect("written");
    let mut agent = pool.start(&["AZP_ONCE=1", "AZP_POOL=buildkit"]);
    eventually("the job runs", LIMIT, || pool.path("working").exists().then_some(()));
    fs::remove_file(pool.path("job")).expect("removed");
    assert!(agent.wait(LIMIT).success(), "{}", agent.log());
    let told = pool.told();
    let told: Vec<_> = told.lines().collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(
        told[0].contains("--url https://dev.azure.com/contoso") && told[0].contains("buildkit")
    );
    assert_eq!(told[1..3], ["run --once", "done"]);
    assert!(told[3].starts_with("config remove --unattended"), "{told:?}");
    assert!(!pool.path("_work").exists(), "nothing of the job is left for the next");
}

#[test]
fn an_agent_that_is_told_to_end_finishes_its_job() {
    let pool = Pool::new();
    fs::write(pool.path("job"), "").expect("written");
    let mut agent = pool.start(&[]);
    eventually("the job runs", LIMIT, || pool.path("working").exists().then_some(()));
    agent.signal("TERM");
    eventually("it says what it waits for", LIMIT, || {
        agent.log().contains("finishing the running job first").then_some(())
    });
    assert!(agent.is_running());
    fs::remove_file(pool.path("job")).expect("removed");
    assert!(agent.wait(LIMIT).success(), "{}", agent.log());
    assert!(pool.told().contains("done\nconfig remove"), "{}", pool.told());
}

#[test]
fn an_idle_agent_ends_at_once() {
    let pool = Pool::new();
    let mut agent = pool.start(&[]);
    pool.wait_for("run --once");
    agent.signal("TERM");
    assert!(agent.wait(LIMIT).success(), "{}", agent.log());
    assert!(pool.told().ends_with("--token pat\n"), "{}", pool.told());
    assert!(pool.told().contains("config remove") && !pool.told().contains("done"));
}

#[test]
fn an_agent_whose_secret_has_no_token_signs_in_by_its_identity() {
    let pool = Pool::new();
    fs::remove_file(pool.path("token")).expect("removed");
    executable(&pool.path("curl"), CURL);
    fs::write(pool.path("federated"), "federated").expect("written");
    let here = pool.directory.path().display().to_string();
    let path = format!("PATH={here}:/usr/bin:/bin");
    let identity = format!("AZURE_FEDERATED_TOKEN_FILE={here}/federated");
    let steps = format!("STEPS={KIT}/steps");
    let identity = ["AZURE_CLIENT_ID=client", "AZURE_TENANT_ID=tenant", &*identity, &*steps];
    let run = |env: &[&str]| pool.start(&[&[&*path, "AZP_PLACEHOLDER=1"], env].concat());
    let mut agent = run(&identity);
    assert!(agent.wait(LIMIT).success(), "{}", agent.log());
    let issued = "--token entra 499b84ac-1321-427f-aa17-267ca6975798/.default";
    assert!(pool.told().contains(issued), "{}", pool.told());
    let mut nobody = run(&[&*steps]);
    assert!(!nobody.wait(LIMIT).success());
    assert!(nobody.log().contains("AZP_TOKEN_FILE has no token"), "{}", nobody.log());
}

#[test]
fn a_placeholder_stays_in_the_pool() {
    let pool = Pool::new();
    let mut agent = pool.start(&["AZP_PLACEHOLDER=1"]);
    assert!(agent.wait(LIMIT).success(), "{}", agent.log());
    assert_eq!(pool.told().lines().count(), 1, "{}", pool.told());
}

#[test]
fn the_agents_image_has_the_clients_and_the_steps() {
    // A test cannot download Debian or the agent. busybox with an apt-get and a useradd that do nothing replaces
    // Debian, and a file replaces the agent.
    let base = Context::busybox("");
    let stages = tempfile::tempdir().expect("a directory");
    let stage = |name: &str| {
        let path = stages.path().join(name);
        fs::create_dir_all(&path).expect("made");
        path
    };
    let links = stage("base/bin");
    fs::copy(base.path().join("busybox"), links.join("sh")).expect("copied");
    for name in ["apt-get", "useradd", "ln"] {
        executable(&links.join(name), "#!/bin/sh\n");
    }
    fs::copy(base.path().join("busybox"), links.join("rm")).expect("copied");
    fs::copy(tool("buildctl"), stage("buildkit/usr/bin").join("buildctl")).expect("copied");
    fs::copy(tool("buildx"), stage("buildx").join("buildx")).expect("copied");
    executable(&stage("agent").join("config.sh"), "#!/bin/sh\n");
    let proxy = Proxy::in_front_of(&fleet()[1..]).start();
    let out = stages.path().join("out");
    let mut build = buildctl_build(&proxy.addr(), &base);
    build.args([
        "--local",
        &format!("context={KIT}"),
        "--local",
        &format!("dockerfile={KIT}/agent"),
    ]);
    for name in ["base", "buildkit", "buildx", "agent"] {
        let local = format!("{name}={}", stages.path().join(name).display());
        build.args(["--opt", &format!("context:{name}=local:{name}"), "--local", &local]);
    }
    for argument in ["BASE=base", "BUILDKIT=buildkit", "BUILDX=buildx", "AGENT_VERSION=0"] {
        build.args(["--opt", &format!("build-arg:{argument}")]);
    }
    succeed(build.arg("--output").arg(format!("type=local,dest={}", out.display())));
    for entry in fs::read_dir(format!("{KIT}/steps")).expect("a directory") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        let mode =
            fs::metadata(out.join(&STEPS[1..]).join(&name)).expect(&name).permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{name} is executable");
    }
    for name in ["usr/local/bin/buildctl", "usr/local/bin/buildx", "usr/local/bin/start"] {
        assert!(out.join(name).exists(), "{name}");
    }
    assert!(out.join("opt/agent/config.sh").exists());
}
