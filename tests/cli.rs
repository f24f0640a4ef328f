//! The command line: every problem in one run, clear errors, documented settings.

mod support;

use std::process::{Command, Output};

use support::client::{run, text};

fn lb(args: &[&str]) -> Output {
    run(Command::new(env!("CARGO_BIN_EXE_buildkit-lb")).args(args))
}

#[test]
fn every_problem_is_printed_and_the_code_is_64() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad.toml");
    std::fs::write(&file, "unknown = 1\npolicy = 'best'\nbackend = ['x']").expect("written");
    let file = file.to_str().expect("UTF-8");
    for command in ["serve", "check-config", "print-config"] {
        let output = lb(&[command, "--config", file, "--drain-timeout", "never"]);
        assert_eq!(output.status.code(), Some(64), "{command}");
        let told = text(&output);
        for key in ["unknown: ", "policy: ", "backend: ", "drain-timeout: "] {
            assert!(told.contains(key), "{key} is missing in: {told}");
        }
    }
    let missing = lb(&["check-config", "--config", "/no/such/file"]);
    assert_eq!(missing.status.code(), Some(64));
    assert!(text(&missing).contains("/no/such/file"));
    assert_eq!(lb(&["serve", "--no-such-flag"]).status.code(), Some(64));
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = format!("127.0.0.1:{}", taken.local_addr().expect("bound").port());
    let free = "127.0.0.1:0";
    for args in
        [["--listen", &addr, "--admin-listen", free], ["--listen", free, "--admin-listen", &addr]]
    {
        let output = lb(&[&["serve", "--backend", "tcp://127.0.0.1:1"], &args[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<_> = told.lines().filter(|line| line.starts_with("buildkit-lb: ")).collect();
        assert_eq!(lines.len(), 1, "{told}");
        assert!(lines[0].contains(&addr) && lines[0].contains("in use"), "{told}");
    }
}

#[test]
fn settings_come_from_flags_over_environment_over_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("lb.toml");
    std::fs::write(&file, "policy = 'random'\nbackend = 'tcp://f:1'\nlog-level = 'warn'")
        .expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
    command.args(["print-config", "--config"]).arg(&file);
    command
        .env("BUILDKIT_LB_POLICY", "least-sessions")
        .env("BUILDKIT_LB_BACKEND", "a=tcp://a:1,b=tcp://b:1");
    let printed = text(&run(command.args(["--log-level", "debug"])));
    for line in ["policy = \"least-sessions\"", "\"b=tcp://b:1\"", "log-level = \"debug\""] {
        assert!(printed.contains(line), "{line} is missing in: {printed}");
    }
}

#[test]
fn version_and_help_are_told() {
    assert!(text(&lb(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    let help = lb(&["serve", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help).contains("BUILDKIT_LB_BACKEND"));
}

/// The README's fenced blocks in this language.
fn readme_blocks(language: &str) -> Vec<String> {
    let readme = include_str!("../README.md");
    let fence = format!("```{language}\n");
    let blocks = readme.split(&fence).skip(1);
    blocks.filter_map(|rest| rest.split("\n```").next()).map(str::to_owned).collect()
}

#[test]
fn the_readmes_configuration_is_valid() {
    let directory = tempfile::tempdir().expect("a directory");
    let blocks = readme_blocks("toml");
    assert!(!blocks.is_empty());
    for block in blocks {
        let file = directory.path().join("readme.toml");
        std::fs::write(&file, &block).expect("written");
        let output = lb(&["check-config", "--config", file.to_str().expect("UTF-8")]);
        assert!(output.status.success(), "{}\n{block}", text(&output));
    }
}

#[test]
fn the_readme_lists_every_flag_and_every_metric() {
    let readme = include_str!("../README.md");
    let help = text(&lb(&["serve", "--help"]));
    let flags = help.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2);
    for flag in flags.filter(|flag| *flag != "--help") {
        assert!(readme.contains(flag), "{flag} is not in the README");
    }
    let metrics = buildkit_lb::metrics::Metrics::new().render();
    let names = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for name in names.filter_map(|line| line.split(' ').next()) {
        assert!(readme.contains(name), "{name} is not in the README");
    }
}
