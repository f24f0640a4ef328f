//! Credentials: passwords, tokens of service connections, and workload identities.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use serde_json::Value;

use crate::{
    CURL, KIT, STEPS,
    agent::Agent,
    executable, fleet, registry,
    support::{
        client::{run, succeed, text},
        compare::same,
        proxy::Proxy,
        registry::Registry,
    },
};

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
