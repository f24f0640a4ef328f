//! The Azure kit works as documented: the steps of its pipelines build, push and cache through the proxy, run as an
//! agent runs them, and its agent starts and ends in order.
//!
//! The registry, the daemons and the clients are real. There is no Azure in a test: `az` is a short script that prints
//! a token, `curl` is one that answers for Entra and ACR, and scripts replace the agent's programs, which can talk to
//! Azure DevOps only.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::Duration,
};

use regex::Regex;
use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    child::Guarded,
    client::{Context, buildctl_build, run, succeed, text},
    compare::same,
    eventually,
    proxy::Proxy,
    registry::Registry,
    tools::{shell, tool},
};

const KIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/azure");

/// Where the agent's image has the steps.
const STEPS: &str = "/opt/buildkit-lb/steps";

/// ACR's user name for clients that have a token.
const USER: &str = "00000000-0000-0000-0000-000000000000";

/// Answers the calls of the steps to the Azure CLI, and no others.
const AZ: &str = r#"#!/bin/sh
case "$*" in
"acr login --name "*" --expose-token --query accessToken --output tsv") echo "$FAKE_TOKEN" ;;
"account show --output none") test -z "$AZURE_FEDERATED_TOKEN_FILE" ;;
*) echo "az: $*" >&2; exit 2 ;;
esac
"#;

/// Answers the calls for a workload identity: Entra with an access token, ACR with a token of its own. ACR's token is
/// another one each time, and from then on the only one that the registry takes for `$USERS`.
const CURL: &str = r#"#!/bin/sh
for argument; do
    case $argument in
    client_assertion@*) assertion=$(cat "${argument#*@}") ;;
    scope=*) scope=${argument#*=} ;;
    access_token=*) access=${argument#*=} ;;
    esac
    url=$argument
done
case $url in
https://login.microsoftonline.com/tenant/oauth2/v2.0/token)
    [ "$assertion" = federated ] || { echo "AADSTS700016: who?"; exit 22; }
    printf '{"token_type": "Bearer",\n "expires_in": 3599, "access_token": "entra %s"}' "$scope" ;;
https://*/oauth2/exchange)
    [ "$access" = "entra https://containerregistry.azure.net/.default" ] || exit 22
    token=$(mktemp -u XXXXXXXX)
    htpasswd -Bbc "$USERS" 00000000-0000-0000-0000-000000000000 "$token" 2>/dev/null
    echo exchanged >>"$HOME/exchanges"
    printf '{"refresh_token":"%s"}' "$token" ;;
*) echo "curl: $*" >&2; exit 2 ;;
esac
"#;

/// Three daemons: one to compare with, and two that are behind every proxy.
fn fleet() -> &'static [Buildkitd] {
    static FLEET: OnceLock<Vec<Buildkitd>> = OnceLock::new();
    FLEET.get_or_init(|| Buildkitd::fleet(3))
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| Registry::start_for(USER, "token"))
}

fn executable(path: &Path, script: &str) {
    fs::write(path, script).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("changed");
}

/// A fresh agent that has checked out one project, as Azure Pipelines does it.
#[derive(Debug)]
struct Agent {
    directory: tempfile::TempDir,
    env: BTreeMap<String, String>,
}

impl Agent {
    /// An agent with a checkout of `project` at `branch`. The project's build has a step of its own.
    fn new(project: &str, branch: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["home", "bin", "_work/_temp"] {
            fs::create_dir_all(path(name)).expect("made");
        }
        executable(&path("bin/az"), AZ);
        let context = Context::busybox(&format!("RUN echo '{project}' > /made && sleep 1"));
        let sources = path("_work/1/s");
        fs::create_dir_all(path("_work/1")).expect("made");
        succeed(Command::new(tool("cp")).arg("-a").arg(context.path()).arg(&sources));
        let uri = "https://contoso@dev.azure.com/contoso/shop/_git/".to_owned() + project;
        let git = "git init -q && git remote add origin \"$1\" && git add -A && \
                   git -c user.name=t -c user.email=t@example.test commit -qm one && \
                   git checkout -q --detach";
        succeed(shell(git, &["git"]).args(["sh", &uri]).current_dir(&sources));
        let tools = tool("buildctl").parent().expect("a directory").to_owned();
        let path_list = format!("{}:{}:/usr/bin:/bin", path("bin").display(), tools.display());
        let env = [
            ("PATH", path_list),
            ("HOME", path("home").display().to_string()),
            ("AGENT_TEMPDIRECTORY", path("_work/_temp").display().to_string()),
            ("BUILD_SOURCESDIRECTORY", sources.display().to_string()),
            ("SYSTEM_TEAMPROJECT", "shop".to_owned()),
            ("BUILD_REPOSITORY_NAME", project.to_owned()),
            ("BUILD_REPOSITORY_URI", uri),
            ("BUILD_SOURCEVERSION", "0".repeat(40)),
            ("BUILD_SOURCEBRANCH", format!("refs/heads/{branch}")),
            ("BUILD_SOURCEBRANCHNAME", branch.rsplit('/').next().expect("a name").to_owned()),
            ("BUILD_BUILDID", "4711".to_owned()),
            ("TF_BUILD", "True".to_owned()),
            ("FAKE_TOKEN", "token".to_owned()),
            ("REGISTRY", registry().host()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        Self { directory, env }
    }

    /// Sets a variable of the run.
    fn set(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs one step: its script in the checkout, with only the environment that an agent gives.
    fn step(&self, script: &str) -> Command {
        let mut step = shell(script.replace(STEPS, &format!("{KIT}/steps")), &[]);
        step.env_clear();
        step.envs(&self.env).current_dir(&self.env["BUILD_SOURCESDIRECTORY"]);
        step
    }

    /// Runs the steps of a pipeline until one fails. Returns the output of all.
    fn pipeline(&mut self, name: &str) -> Output {
        let pipeline = yaml(&format!("pipelines/{name}.yaml")).remove(0);
        for (variable, value) in pipeline["variables"].as_object().expect("variables") {
            let value = value.as_str().expect("text").to_owned();
            // The test's own registry and fleet replace those of the example.
            self.env.entry(variable.to_uppercase()).or_insert(value);
        }
        let mut told = String::new();
        for script in scripts(&pipeline) {
            let output = run(&mut self.step(&self.expand(&script)));
            told += &text(&output);
            self.learn(&text(&output));
            if !output.status.success() {
                return Output { stdout: told.into(), ..output };
            }
        }
        Output { status: Default::default(), stdout: told.into(), stderr: Vec::new() }
    }

    /// A variable that a step sets is there for later steps.
    fn learn(&mut self, output: &str) {
        let set =
            Regex::new(r"(?m)^##vso\[task\.setvariable variable=(\w+)\](.*)$").expect("valid");
        for found in set.captures_iter(output) {
            self.env.insert(found[1].to_uppercase(), found[2].to_owned());
        }
    }

    /// `$(name)` is replaced before a script runs, if there is a variable of that name.
    fn expand(&self, script: &str) -> String {
        let variable = Regex::new(r"\$\((\w+)\)").expect("valid");
        let value = |found: &regex::Captures| {
            self.env.get(&found[1].to_uppercase()).map_or(found[0].to_owned(), Clone::clone)
        };
        variable.replace_all(script, value).into_owned()
    }
}

/// The documents of one of the kit's YAML files.
fn yaml(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(format!("{KIT}/{name}")).expect("a file");
    serde_saphyr::from_multiple(&text).expect(name)
}

/// The scripts of a pipeline's steps, in order.
fn scripts(pipeline: &Value) -> Vec<String> {
    let steps = pipeline["steps"].as_array().expect("steps").iter();
    let script = |step: &Value| {
        let script = step["script"].as_str().or_else(|| step["inputs"]["inlineScript"].as_str());
        script.map(str::to_owned)
    };
    steps.filter_map(script).collect()
}

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

/// A script with the functions of names.sh.
fn names(script: &str) -> String {
    let set = "REGISTRY=r SYSTEM_TEAMPROJECT=s BUILD_REPOSITORY_NAME=p BUILD_BUILDID=1";
    format!(
        "set -eu; export {set} BUILD_SOURCEBRANCH=refs/heads/b; . {KIT}/steps/names.sh; {script}"
    )
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
fn a_wrong_password_gives_the_text_that_a_daemon_gives() {
    let proxy = Proxy::in_front_of(&fleet()[1..]).start();
    let direct = fleet()[0].addr();
    for client in ["buildctl", "buildx"] {
        let agents = [&direct, &proxy.addr()].map(|addr| {
            let agent = Agent::new("secret", "main").set("BUILDKIT_ADDR", addr);
            // The run of a fork exports no cache. Otherwise the export would also fail, or be cut off when the push
            // fails, and the text would differ from run to run.
            agent.set("FAKE_TOKEN", "wrong").set("SYSTEM_PULLREQUEST_ISFORK", "True")
        });
        let (refused, _) = same(&direct, &proxy.addr(), |addr| {
            let agent = &agents[usize::from(addr != direct)];
            agent.step(&format!("{STEPS}/login.sh && {STEPS}/build-{client}.sh"))
        });
        let told = text(&refused);
        assert!(!refused.status.success() && told.contains("401 Unauthorized"), "{told}");
        assert!(told.contains("##vso[task.setsecret]wrong"), "the token is masked in logs: {told}");
    }
}

#[test]
fn credentials_come_from_a_password_or_a_workload_identity() {
    let agent = Agent::new("login", "main").set("REGISTRY_USERNAME", "user");
    let agent = agent.set("REGISTRY_PASSWORD", "secret");
    let config = |agent: &Agent| {
        let path = Path::new(&agent.env["AGENT_TEMPDIRECTORY"]).join("docker/config.json");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o77, 0);
        let config: Value =
            serde_json::from_str(&fs::read_to_string(&path).expect("read")).expect("JSON");
        config["auths"][registry().host()]["auth"].as_str().expect("a text").to_owned()
    };
    let login = format!("{STEPS}/login.sh");
    succeed(&mut agent.step(&login));
    // user:secret in base64
    assert_eq!(config(&agent), "dXNlcjpzZWNyZXQ=");

    let agent = agent.set("REGISTRY_PASSWORD", "$(registryPassword)");
    let output = run(&mut agent.step(&login));
    assert!(!output.status.success());
    assert!(text(&output).contains("the pipeline has no such variable"), "{}", text(&output));

    let agent = agent.set("REGISTRY_PASSWORD", "");
    succeed(&mut agent.step(&login));
    assert!(config(&agent).starts_with("MDAwMDAwMDAt"), "ACR's user, by the service connection");
}

/// An agent whose pod has a workload identity, and a registry of its own.
fn with_identity(registry: &Registry) -> Agent {
    let agent = Agent::new("identity", "main");
    let path = |name: &str| agent.directory.path().join(name);
    executable(&path("bin/curl"), CURL);
    fs::write(path("federated"), "federated").expect("written");
    let helper = "docker-credential-acr-identity";
    std::os::unix::fs::symlink(format!("{KIT}/steps/{helper}"), path("bin").join(helper))
        .expect("linked");
    let users = registry.users().display().to_string();
    let token = path("federated").display().to_string();
    agent
        .set("AZURE_CLIENT_ID", "client")
        .set("AZURE_TENANT_ID", "tenant")
        .set("AZURE_FEDERATED_TOKEN_FILE", &token)
        .set("USERS", &users)
        .set("REGISTRY", &registry.host())
}

#[test]
fn a_build_that_outlives_a_token_pushes_with_the_next_one() {
    let registry = Registry::start();
    let proxy = Proxy::in_front_of(&fleet()[1..]).start();
    let agent = with_identity(&registry).set("BUILDKIT_ADDR", &proxy.addr());
    let signed_in = succeed(&mut agent.step(&format!("{STEPS}/login.sh")));
    assert!(signed_in.contains("signed in to"), "{signed_in}");
    let exchanges = || {
        let told = fs::read_to_string(Path::new(&agent.env["HOME"]).join("exchanges"));
        told.unwrap_or_default().lines().count()
    };
    assert_eq!(exchanges(), 1, "what is wrong shows at once");
    // The registry takes no earlier token.
    let config = format!("{}/docker", agent.env["AGENT_TEMPDIRECTORY"]);
    let build = "buildctl --addr \"$BUILDKIT_ADDR\" build --frontend dockerfile.v0 --local context=. \
                 --local dockerfile=. --output type=image,name=\"$REGISTRY/late:1\",push=true";
    let built = run(agent.step(build).env("DOCKER_CONFIG", &config));
    assert!(built.status.success(), "{}", text(&built));
    assert_eq!(exchanges(), 2, "the push asked for a token of its own");
}

#[test]
fn an_identity_without_rights_fails_where_it_signs_in() {
    let registry = Registry::start();
    let agent = with_identity(&registry);
    fs::write(agent.directory.path().join("federated"), "another").expect("written");
    let refused = run(&mut agent.step(&format!("{STEPS}/login.sh")));
    let told = text(&refused);
    assert!(!refused.status.success() && told.contains("AADSTS700016: who?"), "{told}");
    assert!(told.contains("##vso[task.logissue type=error]docker-credential-acr"), "{told}");
}

#[test]
fn any_branch_gives_a_valid_tag_of_its_own() {
    let long = "x".repeat(300);
    let branches = [
        "main",
        "v1.2_x-y",
        "feature/a",
        "feature-a",
        "bugfix/a",
        "-dash",
        "...",
        "\u{fc}n\u{ef}",
        "a b",
        "a\tb",
        "#1",
        "$(id)",
        "`id`",
        "a;b",
        "'",
        "\"",
        "*",
        &long,
        "refs",
    ];
    let script = names("for branch in \"$@\"; do tag_of \"$branch\"; done");
    let told = succeed(shell(&script, &[]).arg("bash").args(branches));
    let tags: Vec<_> = told.lines().collect();
    assert_eq!(tags.len(), branches.len(), "{told}");
    assert_eq!((tags[0], tags[1]), (branches[0], branches[1]), "valid names stay as they are");
    let valid = Regex::new("^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$").expect("valid");
    for tag in &tags {
        assert!(valid.is_match(tag), "{tag}");
    }
    let different: std::collections::BTreeSet<_> = tags.iter().collect();
    assert_eq!(different.len(), tags.len(), "{tags:?}");
}

#[test]
fn repositories_of_one_name_in_two_projects_share_neither_image_nor_cache() {
    let script = names("echo \"$image $cache\"");
    let of = |project: &str| {
        let script = script.replace("TEAMPROJECT=s", &format!("TEAMPROJECT={project}"));
        succeed(&mut shell(script.replace("NAME=p", "NAME=web"), &[]))
    };
    assert_eq!(of("shop").trim(), "r/shop/web:1 r/cache/shop/web");
    assert_eq!(of("Billing").trim(), "r/billing/web:1 r/cache/billing/web");
    let unset = script.replace("SYSTEM_TEAMPROJECT=s", "");
    let told = text(&run(&mut shell(unset, &[])));
    assert!(told.contains("SYSTEM_TEAMPROJECT: is not set"), "{told}");
}

#[test]
fn any_project_gives_a_valid_repository() {
    let projects =
        ["shop", "My Team/App (new)", "A__B", "-a-/.b.", "\u{dc}ber", "%", "a//b", "x\ny"];
    let script = names("for name in \"$@\"; do repository_of \"$name\"; done");
    let told = succeed(shell(&script, &[]).arg("bash").args(projects));
    let part = "[a-z0-9]+(?:[._-][a-z0-9]+)*";
    let valid = Regex::new(&format!("^{part}(?:/{part})*$")).expect("valid");
    assert_eq!(told.lines().count(), projects.len(), "{told}");
    for repository in told.lines() {
        assert!(valid.is_match(repository), "{repository}");
    }
    assert!(told.starts_with("shop\nmy-team/app-new\n"), "{told}");
}

#[test]
fn a_pull_request_reads_its_targets_cache_and_a_fork_writes_none() {
    let agent = Agent::new("pr", "x").set("BUILD_SOURCEBRANCH", "refs/pull/12/merge");
    let agent = agent.set("SYSTEM_PULLREQUEST_SOURCEBRANCH", "refs/heads/topic");
    let agent = agent.set("SYSTEM_PULLREQUEST_TARGETBRANCH", "refs/heads/release");
    let show =
        format!(". {STEPS}/names.sh; printf '%s\\n' \"${{cache_from[@]}}\" \"${{cache_to[@]}}\"");
    let told = succeed(&mut agent.step(&show));
    let cache = format!("type=registry,ref={}/cache/shop/pr", registry().host());
    let lines: Vec<_> = told.lines().collect();
    assert_eq!(lines[..2], [format!("{cache}:topic"), format!("{cache}:release")]);
    assert!(lines[2].starts_with(&format!("{cache}:topic,mode=max,image-manifest=true")), "{told}");
    let fork = agent.set("SYSTEM_PULLREQUEST_ISFORK", "True");
    let told = succeed(&mut fork.step(&show));
    assert!(!told.contains("mode=max"), "{told}");
}

#[test]
fn the_readme_lists_the_variables_of_the_steps() {
    let readme = fs::read_to_string(format!("{KIT}/README.md")).expect("a file");
    let listed = |start: &str, end: &str| {
        let part = readme.split(start).nth(1).and_then(|rest| rest.split(end).next());
        Regex::new("(?m)`([A-Z_]+)`[,|` A-Z_]* \\|")
            .expect("valid")
            .captures_iter(part.expect("a part"))
            .map(|found| found[1].to_owned())
            .collect::<Vec<_>>()
    };
    let told = listed("## The steps", "**Signing in**");
    let names = ["login.sh", "names.sh", "tls.sh", "build-buildctl.sh", "build-buildx.sh"];
    let steps = names.map(|name| fs::read_to_string(format!("{KIT}/steps/{name}")).expect(name));
    assert!(told.len() >= 8, "{told:?}");
    for variable in told {
        assert!(steps.concat().contains(&format!("{{{variable}:")), "no step reads {variable}");
    }
}

#[test]
fn the_readme_quotes_the_proxys_own_errors() {
    let readme = fs::read_to_string(format!("{KIT}/README.md")).expect("a file");
    let errors = include_str!("../src/error.rs");
    for words in ["no backend is available: ", "} was lost: ", "} cannot be reached: "] {
        assert!(errors.contains(words), "no error says `{words}`");
        assert!(readme.contains(words.trim_start_matches('}')), "no row for `{words}`");
    }
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
        agent.log().contains("ends after it").then_some(())
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
