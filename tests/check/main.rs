//! `buildkit-lb check` in front of real daemons and a real Kubernetes API: what is well, and each fault with what to do.

mod daemons;
mod kubernetes;
#[path = "../support/mod.rs"]
mod support;

use std::process::Command;

use buildkit_lb::check::{Finding, Level};
use support::client::{run, text};

/// Runs the check. Returns its exit code and its findings.
fn check(command: &mut Command) -> (Option<i32>, Vec<Finding>) {
    let output = run(command.args(["--output", "json"]));
    let told = String::from_utf8_lossy(&output.stdout);
    let findings =
        serde_json::from_str(&told).map_err(|error| (error, text(&output))).expect("JSON");
    (output.status.code(), findings)
}

/// `buildkit-lb check` with `args`, on ports that are free.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
    command.args(["check", "--admin-listen", "127.0.0.1:0"]).args(args);
    command
}

/// The finding about `subject`.
fn about<'a>(findings: &'a [Finding], subject: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.subject.contains(subject));
    found.ok_or_else(|| format!("nothing about {subject} in {findings:#?}")).expect("a finding")
}

/// Fails unless the finding about `subject` has this level, these words, and advice if it is not well.
fn expect(findings: &[Finding], level: Level, subject: &str, words: &str) {
    let found = about(findings, subject);
    assert!(found.level == level && found.text.contains(words), "{found:#?}");
    assert_eq!(found.advice.is_empty(), level == Level::Ok, "{found:#?}");
}
