//! What the scripts of a release refuse.

use std::{fs, path::Path, process::Command};

use crate::{
    ROOT, VERSION,
    support::client::{run, text},
};

fn script(name: &str) -> Command {
    Command::new(Path::new(ROOT).join("deploy/release").join(name))
}

#[test]
fn only_digests_are_signed() {
    let digest = format!("registry.example/buildkit-lb@sha256:{}", "0".repeat(64));
    let tag = "registry.example/buildkit-lb:0.1.0";
    let sign = |images: &[&str]| run(script("sign").env("COSIGN", "echo").args(images));
    let refused = sign(&[&digest, tag]);
    assert!(!refused.status.success() && text(&refused).contains("has no digest"), "{refused:?}");
    assert!(!sign(&[]).status.success());
    let signed = sign(&[&digest]);
    assert!(signed.status.success() && text(&signed).contains(&digest), "{signed:?}");
}

#[test]
fn a_tag_that_is_not_the_version_is_not_released() {
    let refused = run(script("check").arg("v99.0.0"));
    assert!(!refused.status.success() && text(&refused).contains("Cargo.toml says"), "{refused:?}");
    // A version without a section in the changelog is not released either.
    let told = text(&run(script("check").arg(format!("v{VERSION}"))));
    let changelog = fs::read_to_string(Path::new(ROOT).join("CHANGELOG.md")).expect("a file");
    let has_section = changelog.contains(&format!("## [{VERSION}]"));
    let expected = if has_section { "may be released" } else { "CHANGELOG.md has no section" };
    assert!(told.contains(expected), "{told}");
}
