//! Whatever pages tell people to type or to write into files: shell passes `bash -n`, files parse, and Helm renders
//! each release that a page installs from this chart.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use regex::Regex;

use crate::support::{
    pages::{Block, blocks, commands, typed},
    tools::tool,
};

fn bash(args: &[&str], script: &str) -> Output {
    let mut bash = Command::new(tool("bash"));
    bash.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = bash.spawn().expect("bash runs");
    child.stdin.take().expect("an input").write_all(script.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

#[test]
fn what_is_typed_is_shell() {
    let mut count = 0;
    for block in blocks() {
        let Some(script) = typed(&block) else { continue };
        count += 1;
        let output = bash(&["-n"], &script);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {told}\n{script}", block.page.display());
    }
    assert!(count > 40, "{count}");
}

#[test]
fn files_that_are_shown_parse() {
    let mut count = 0;
    for Block { page, language, text } in blocks() {
        let parsed = match &*language {
            "yaml" => serde_saphyr::from_multiple::<serde_json::Value>(&text)
                .map(drop)
                .map_err(|error| error.to_string()),
            "toml" => text.parse::<toml::Table>().map(drop).map_err(|error| error.to_string()),
            "json" => serde_json::from_str::<serde_json::Value>(&text)
                .map(drop)
                .map_err(|error| error.to_string()),
            _ => continue,
        };
        count += 1;
        assert_eq!(parsed, Ok(()), "{}:\n{text}", page.display());
    }
    assert!(count > 10, "{count}");
}

#[test]
fn releases_that_are_installed_from_the_chart_render() {
    let helm = tool("helm").display().to_string();
    let oci = Regex::new(r"oci://\S+ ").expect("valid");
    let mut count = 0;
    for block in blocks() {
        let Some(script) = typed(&block) else { continue };
        let script = script.replace("\\\n", " ");
        for line in script.lines().filter(|line| is_installed(line)) {
            count += 1;
            // A release in a registry is this chart with the name of its image.
            let released = "--set image.registry=registry.example deploy/chart ";
            let line = oci.replace(line, released).replace(" --version 0.1.0", "");
            // The command runs in the page's own directory if the page says so, as the chart's page does.
            let chart = if line.contains(" deploy/chart") { "." } else { "deploy/chart" };
            let shell = format!(
                "cd {chart}; REGISTRY=registry.example\n\
                 helm() {{ shift; '{helm}' template --kube-version 1.36.3 \"$@\"; }}\n{line}"
            );
            let output = bash(&["-e"], &shell.replace(" --create-namespace", ""));
            let told = String::from_utf8_lossy(&output.stderr);
            let rendered = output.status.success() && output.stdout.starts_with(b"---\n");
            assert!(rendered, "{}: {line}\n{told}", block.page.display());
        }
    }
    assert!(count >= 7, "{count}");
}

#[test]
fn the_proxy_has_every_command_and_flag_that_a_page_types() {
    let command =
        Regex::new(r"(?m)^[$#] (?:\S*/)?buildkit-lb ((?:.*\\\n)*[^>&|\n]*)").expect("valid");
    let binary = env!("CARGO_BIN_EXE_buildkit-lb");
    let mut count = 0;
    for Block { page, text, .. } in blocks() {
        for found in command.captures_iter(&text) {
            count += 1;
            // Unknown flags and values that do not parse are refused before the help is printed.
            let output = bash(&["-e"], &format!("'{binary}' {} --help", found[1].trim_end()));
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {}\n{told}", page.display(), &found[0]);
        }
    }
    assert!(count > 20, "{count}");
}

/// Whether the line is a helm command with values files of this repository.
fn is_installed(line: &str) -> bool {
    ["helm install ", "helm template "].iter().any(|start| line.starts_with(start))
}

#[test]
fn commands_are_told_from_what_they_print() {
    let console = "$ one \\\n    more\nprinted\n$ for a in b; do\n  two\ndone\nprinted\n$ three <<'END'\n\
                   four\nEND\nprinted\n";
    let expected = "one \\\n    more\nfor a in b; do\n  two\ndone\nthree <<'END'\nfour\nEND\n";
    assert_eq!(commands(console), expected);
}
