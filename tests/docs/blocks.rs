//! Whatever pages tell people to type or to write into files: shell passes `bash -n`, files parse, and Helm renders
//! each release that a page installs from this chart.

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use regex::Regex;

use super::{pages, support::tools::tool};

/// A block of code of a page.
#[derive(Debug)]
struct Block {
    page: PathBuf,
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let fence = Regex::new(r"(?ms)^( *)```(\w+)\n(.*?)^ *```$").expect("valid");
    let mut found = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).expect("UTF-8");
        found.extend(fence.captures_iter(&text).map(|block| Block {
            page: page.clone(),
            language: block[2].to_owned(),
            text: block[3].replace(&format!("\n{}", &block[1]), "\n").trim_start().to_owned(),
        }));
    }
    found
}

/// The commands of a block, without prompts and without output.
fn typed(block: &Block) -> Option<String> {
    match &*block.language {
        "sh" => Some(block.text.clone()),
        "console" => Some(commands(&block.text)),
        _ => None,
    }
}

/// The lines after a prompt. Each has the lines that continue it, after a backslash or in a loop.
fn commands(console: &str) -> String {
    let (mut script, mut goes_on, mut in_loop) = (String::new(), false, false);
    for line in console.lines() {
        let command = line.strip_prefix("$ ");
        if command.is_some() || goes_on || in_loop {
            let command = command.unwrap_or(line);
            in_loop = (in_loop || command.starts_with("for ")) && command.trim() != "done";
            goes_on = command.ends_with(['\\', '|']);
            script += command;
            script += "\n";
        }
    }
    script
}

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
                "cd {chart}; helm() {{ shift; '{helm}' template --kube-version 1.36.3 \"$@\"; }}\n{line}"
            );
            let output = bash(&["-e"], &shell.replace(" --create-namespace", ""));
            let told = String::from_utf8_lossy(&output.stderr);
            let rendered = output.status.success() && output.stdout.starts_with(b"---\n");
            assert!(rendered, "{}: {line}\n{told}", block.page.display());
        }
    }
    assert!(count >= 7, "{count}");
}

/// Whether the line is a helm command with values files of this repository.
fn is_installed(line: &str) -> bool {
    ["helm install ", "helm template "].iter().any(|start| line.starts_with(start))
}

#[test]
fn commands_are_told_from_what_they_print() {
    let console = "$ one \\\n    more\nprinted\n$ for a in b; do\n  two\ndone\nprinted\n$ three\n";
    assert_eq!(commands(console), "one \\\n    more\nfor a in b; do\n  two\ndone\nthree\n");
}
