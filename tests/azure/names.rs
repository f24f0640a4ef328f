//! The names of images, tags and caches.

use regex::Regex;

use crate::{
    KIT, STEPS,
    agent::Agent,
    registry,
    support::{
        client::{run, succeed, text},
        tools::shell,
    },
};

/// A script with the functions of names.sh.
pub(super) fn names(script: &str) -> String {
    let set = "REGISTRY=r SYSTEM_TEAMPROJECT=s BUILD_REPOSITORY_NAME=p BUILD_BUILDID=1";
    format!(
        "set -eu; export {set} BUILD_SOURCEBRANCH=refs/heads/b; . {KIT}/steps/names.sh; {script}"
    )
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
