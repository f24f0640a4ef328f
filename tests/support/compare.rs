//! Runs the same client command directly at a daemon and through the proxy, and compares both.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
};

use super::client::{run, text};

/// The exit code and text of a command, without what differs from run to run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    code: Option<i32>,
    steps: BTreeSet<String>,
    error: Vec<String>,
}

impl Outcome {
    /// The steps and texts that `output` shows.
    pub(crate) fn of(output: &Output) -> Self {
        let text = text(output);
        let step = |line: &str| {
            let (number, rest) = line.strip_prefix('#')?.split_once(' ')?;
            number.parse::<u32>().ok()?;
            // A step that several builds or targets share is shown under the name and number of any of them.
            let (_names, step) = rest.strip_prefix('[')?.split_once(']')?;
            Some(step.trim().to_owned())
        };
        let error = text.lines().skip_while(|line| !is_error(line)).filter(|line| !is_noise(line));
        Self {
            code: output.status.code(),
            steps: text.lines().filter_map(step).collect(),
            error: error.map(without_digests).collect(),
        }
    }

    /// Whether a step with this name was shown.
    pub(crate) fn has_step(&self, name: &str) -> bool {
        self.steps.contains(name)
    }

    /// The same without the step with this name.
    pub(crate) fn without_step(mut self, name: &str) -> Self {
        self.steps.remove(name);
        self
    }
}

/// The rest of the text describes the failure.
fn is_error(line: &str) -> bool {
    line.starts_with("------") || line.starts_with("error:") || line.starts_with("ERROR:")
}

/// Layers contain the times of their files, and chance decides which one fails first.
fn without_digests(line: &str) -> String {
    let mut parts = line.split("sha256:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, part| {
        line + "sha256:" + part.trim_start_matches(|c: char| c.is_ascii_hexdigit())
    })
}

/// The log lines of a step begin with its running time.
fn is_noise(line: &str) -> bool {
    line.split_once(' ').is_some_and(|(time, _)| time.parse::<f64>().is_ok())
}

/// Runs `command` for both addresses, and fails unless both results are equal. Returns the outputs.
pub(crate) fn same(
    direct: &str,
    proxied: &str,
    mut command: impl FnMut(&str) -> Command,
) -> (Output, Output) {
    let (direct, proxied) = (run(&mut command(direct)), run(&mut command(proxied)));
    assert_eq!(
        Outcome::of(&direct),
        Outcome::of(&proxied),
        "direct:\n{}\nthrough the proxy:\n{}",
        text(&direct),
        text(&proxied)
    );
    (direct, proxied)
}

/// [`same`] for a command that has to succeed.
pub(crate) fn same_success(
    direct: &str,
    proxied: &str,
    command: impl FnMut(&str) -> Command,
) -> (Output, Output) {
    let (direct, proxied) = same(direct, proxied, command);
    assert!(direct.status.success(), "{}", text(&direct));
    (direct, proxied)
}
