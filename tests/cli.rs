//! The command line: every problem in one run, clear errors, documented settings.

mod support;

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Output},
};

use regex::Regex;
use support::{
    client::{run, succeed, text},
    tools::{shell, tool},
};

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
fn output_that_nobody_can_read_is_no_panic() {
    let binary = env!("CARGO_BIN_EXE_buildkit-lb");
    for (command, code) in [
        ("check-config --backend tcp://b:1 >/dev/full", 1),
        ("print-config --backend tcp://b:1 >/dev/full 2>/dev/full", 1),
        ("check-config 2>/dev/full", 64),
        ("serve --no-such-flag 2>/dev/full", 64),
        ("--help >/dev/full", 0),
        ("serve --backend tcp://b:1 --listen unix:///no/such/place 2>/dev/full", 1),
        ("print-config --backend tcp://b:1 > >(true)", 0),
    ] {
        let output = run(&mut shell(format!("{binary} {command}"), &[]));
        assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output));
        assert!(!text(&output).contains("panicked"), "{command}: {}", text(&output));
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
        .env("BUILDKIT_LB_POLICY", "least-builds")
        .env("BUILDKIT_LB_BACKEND", "a=tcp://a:1,b=tcp://b:1");
    let printed = text(&run(command.args(["--log-level", "debug"])));
    for line in ["policy = \"least-builds\"", "\"b=tcp://b:1\"", "log-level = \"debug\""] {
        assert!(printed.contains(line), "{line} is missing in: {printed}");
    }
}

#[test]
fn a_problem_names_the_flag_the_variable_or_the_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("lb.toml");
    std::fs::write(&file, "# a comment\nlog-level = 'loud'\npolicy = 'random'").expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
    command
        .args(["check-config", "--backend", "b:1", "--drain-delay", "soon", "--config"])
        .arg(&file);
    command.env("BUILDKIT_LB_POLICY", "best").env("BUILDKIT_LB_POD_DETAILS", "perhaps");
    let told = text(&run(&mut command));
    let line = format!("({}:2)", file.display());
    for (key, origin) in [
        ("log-level: `loud` is not one of error, warn, info, debug or trace", line.as_str()),
        (
            "policy: `best` is not one of random, least-builds or consistent-hash",
            "(BUILDKIT_LB_POLICY)",
        ),
        ("pod-details: must be true or false", "(BUILDKIT_LB_POD_DETAILS)"),
        ("drain-delay: `soon` is not a duration", "(--drain-delay)"),
    ] {
        let found = told.lines().any(|line| line.starts_with(key) && line.ends_with(origin));
        assert!(found, "{key} {origin} is missing in: {told}");
    }
    assert_eq!(told.lines().count(), 4, "{told}");
}

#[test]
fn a_configuration_that_does_not_end_is_not_read_for_ever() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (huge, fifo) = (path("huge"), path("fifo"));
    std::fs::write(&huge, "#".repeat((1 << 20) + 1)).expect("written");
    assert!(run(Command::new(tool("mkfifo")).arg(&fifo)).status.success());
    for (file, why) in [
        ("/dev/zero", "not a regular file"),
        (fifo.as_str(), "not a regular file"),
        ("/", "not a regular file"),
        (huge.as_str(), "longer than 1 MiB"),
    ] {
        let output = lb(&["check-config", "--config", file]);
        assert_eq!(output.status.code(), Some(64), "{file}");
        assert!(text(&output).contains(&format!("config: cannot read `{file}`: it is {why}")));
    }
}

#[test]
fn a_name_that_cannot_be_looked_up_is_told_at_the_start() {
    let nowhere = "no-such-host.invalid:1";
    let args = ["--backend", "tcp://b:1", "--listen", "127.0.0.1:0", "--admin-listen", nowhere];
    assert!(lb(&[&["check-config"], &args[..]].concat()).status.success());
    let output = lb(&[&["serve"], &args[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output);
    assert!(told.contains(&format!("buildkit-lb: listen on admin port {nowhere}: ")), "{told}");
}

#[test]
fn version_and_help_are_told() {
    assert!(text(&lb(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    let help = lb(&["serve", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help).contains("BUILDKIT_LB_BACKEND"));
}

/// The fenced blocks in this language in a document.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let blocks = document.split(&fence).skip(1);
    let blocks: Vec<_> =
        blocks.filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect();
    assert!(!blocks.is_empty());
    blocks
}

const CONFIGURATION: &str = include_str!("../docs/configuration.md");
const PLACEMENT: &str = include_str!("../docs/placement.md");

#[test]
fn the_documented_configuration_is_valid() {
    let directory = tempfile::tempdir().expect("a directory");
    let documents = [CONFIGURATION, PLACEMENT];
    for block in documents.into_iter().flat_map(|document| blocks(document, "toml")) {
        let file = directory.path().join("example.toml");
        std::fs::write(&file, &block).expect("written");
        let mut args = vec!["check-config", "--config", file.to_str().expect("UTF-8")];
        if !block.contains("backend = [") && !block.contains("[[pool]]") {
            args.extend(["--backend", "tcp://b:1"]);
        }
        let output = lb(&args);
        assert!(output.status.success(), "{}\n{block}", text(&output));
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let printed = text(&lb(&["print-config", "--backend", "tcp://b:1"]));
    let printed: toml::Table = printed.parse().expect("TOML");
    let [configuration, placement] = [CONFIGURATION, PLACEMENT].map(|document| {
        let blocks = blocks(document, "toml");
        let tables = blocks.iter().map(|block| block.parse::<toml::Table>().expect("TOML"));
        tables.collect::<Vec<_>>()
    });
    for name in ["affinity", "consistent-hash", "warm-memory", "slow-start", "probation"] {
        let documented = configuration.iter().find_map(|table| table.get(name)).expect(name);
        let documented = documented.to_string().replace("= 1.25", "= \"1.25\"");
        assert_eq!(documented, printed[name].to_string().replace("1day", "24h"), "{name}");
    }
    let rules = placement.iter().find_map(|table| table.get("affinity")).expect("rules");
    assert_eq!(rules, &printed["affinity"]);
}

#[test]
fn every_example_of_a_key_is_what_explain_key_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("lb.toml");
    let fleet = blocks(PLACEMENT, "toml").into_iter().find(|block| block.contains("backend = ["));
    std::fs::write(&file, fleet.expect("a fleet")).expect("written");
    for block in blocks(PLACEMENT, "console") {
        let (command, expected) = block.split_once('\n').expect("a command and its output");
        let args = command.strip_prefix("$ buildkit-lb ").expect("a command").split(' ');
        let args: Vec<_> = args.chain(["--config", file.to_str().expect("UTF-8")]).collect();
        assert_eq!(text(&lb(&args)), expected, "{command}");
    }
}

#[test]
fn a_captured_solve_is_explained() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("solve");
    // Ref "r", then a frontend attribute (field 7 of SolveRequest): vcs:source, which consists of two strings.
    let attr = [&[10, 10][..], b"vcs:source", &[18, 12], b"http://h/x/y"].concat();
    let length = u8::try_from(attr.len()).expect("short");
    let solve = [&[10, 1][..], b"r", &[58, length], &attr].concat();
    let framed = [&[0, 0, 0, 0, u8::try_from(solve.len()).expect("short")][..], &solve].concat();
    let mut told = Vec::new();
    for bytes in [solve, framed] {
        std::fs::write(&file, bytes).expect("written");
        let file = file.to_str().expect("UTF-8");
        let output = lb(&["explain-key", "--backend", "a=tcp://a:1", "--solve", file]);
        assert!(output.status.success());
        told.push(text(&output));
    }
    assert!(told[0].starts_with("key         h/x/y\nkey_source  vcs\n"), "{}", told[0]);
    assert!(told[0].contains("\n0           a   home\n"), "{}", told[0]);
    assert_eq!(told[0], told[1]);
    std::fs::write(&file, b"\xff\xff\xff").expect("written");
    let file = file.to_str().expect("UTF-8");
    let garbage = lb(&["explain-key", "--backend", "a=tcp://a:1", "--solve", file]);
    assert_eq!(garbage.status.code(), Some(1));
    assert!(text(&garbage).contains("decode the captured SolveRequest"), "{}", text(&garbage));
}

#[test]
fn contradicting_rules_are_refused_with_the_path_of_their_key() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("lb.toml");
    let rules =
        "[affinity]\nsources = ['vcs', { from = 'vcs', regex = 'a' }]\ninclude = ['x', 'x']";
    std::fs::write(&file, rules).expect("written");
    let file = file.to_str().expect("UTF-8");
    for command in ["serve", "check-config", "explain-key"] {
        let output = lb(&[command, "--config", file, "--backend", "tcp://127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(64), "{command}");
        let told = text(&output);
        assert!(told.contains("affinity.sources[1]: ") && told.contains("affinity.include[1]: "));
    }
}

/// The keys of the file and of its tables, as `table.key`.
fn keys(table: &toml::Table) -> BTreeSet<String> {
    let keys = table.iter().flat_map(|(key, value)| match value {
        toml::Value::Table(table) => {
            table.keys().map(|inner| format!("{key}.{inner}")).collect::<Vec<_>>()
        }
        _ => vec![key.clone()],
    });
    keys.collect()
}

#[test]
fn every_key_of_the_file_is_documented_and_no_other() {
    let command = buildkit_lb::cli::command();
    let serve = command.find_subcommand("serve").expect("a command");
    let flags: BTreeSet<_> = serve.get_arguments().filter_map(|arg| arg.get_long()).collect();
    let rows = CONFIGURATION.split_once("These keys have no flag").expect("a table").1;
    let rows: Vec<_> = rows
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(key, _rest)| key)
        .collect();
    let printed = text(&lb(&["print-config", "--backend", "tcp://b:1"]));
    for key in keys(&printed.parse().expect("TOML")) {
        let documented = flags.contains(key.as_str()) || rows.contains(&key.as_str());
        assert!(documented, "{key} is missing in docs/configuration.md");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("lb.toml");
    let file = file.to_str().expect("UTF-8");
    let is_known = |key: &str| {
        std::fs::write(file, format!("{key} = 1979-05-27")).expect("written");
        let told = text(&lb(&["check-config", "--backend", "tcp://b:1", "--config", file]));
        !told.contains(&format!("{key}: unknown key"))
    };
    for key in rows.into_iter().chain(flags).filter(|key| *key != "config") {
        assert!(is_known(key), "the file takes no {key}");
    }
    assert!(["no-such-key", "affinity.no-such-key"].iter().all(|key| !is_known(key)));
}

#[test]
fn a_command_s_own_flags_come_first_in_its_help() {
    let help = text(&lb(&["explain-key", "--help"]));
    let place = |words: &str| help.find(words).unwrap_or_else(|| panic!("no {words} in {help}"));
    assert!(place("--opt ") < place("--config "));
    assert!(place("--config ") < place("\nClients:\n"));
    assert!(place("\nClients:\n") < place("\nLog:\n"));
}

/// Writes the output of the command into a file, and returns the path of the file.
fn written(directory: &Path, name: &str, args: &[&str]) -> String {
    let path = directory.join(name);
    let output = lb(args);
    assert!(output.status.success(), "{}", text(&output));
    std::fs::write(&path, output.stdout).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn shells_complete_commands_and_flags() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = |shell| written(directory.path(), shell, &["completions", shell]);
    let completed = succeed(&mut shell(
        format!(
            "source {}; COMP_WORDS=(buildkit-lb serve --drain-) COMP_CWORD=2
            _buildkit__lb buildkit-lb --drain- serve; echo ${{COMPREPLY[@]}}",
            script("bash")
        ),
        &[],
    ));
    assert_eq!(completed.trim(), "--drain-delay --drain-timeout");
    let completed = succeed(&mut shell(
        format!(
            "source {}; COMP_WORDS=(buildkit-lb serve --policy l) COMP_CWORD=3
            _buildkit__lb buildkit-lb l --policy; echo ${{COMPREPLY[@]}}",
            script("bash")
        ),
        &[],
    ));
    assert_eq!(completed.trim(), "least-builds");
    let asked = format!("source {}; complete -C 'buildkit-lb drain-b'", script("fish"));
    let completed = succeed(Command::new(tool("fish")).args(["--no-config", "-c", &asked]));
    assert!(completed.starts_with("drain-backend\t"), "{completed}");
    let asked = format!(
        "autoload -U compinit && compinit -D && source {} && echo $_comps[buildkit-lb]",
        script("zsh")
    );
    let completed = succeed(Command::new(tool("zsh")).args(["-f", "-c", &asked]));
    assert_eq!(completed.trim(), "_buildkit-lb");
}

#[test]
fn manual_pages_name_every_command_and_flag() {
    let directory = tempfile::tempdir().expect("a directory");
    let shown = |args: &[&str]| {
        let page = written(directory.path(), "page.1", args);
        let shown =
            succeed(Command::new(tool("mandoc")).args(["-T", "ascii", "-W", "error", &page]));
        // mandoc prints bold and underlined letters as two letters with a backspace between them.
        Regex::new(r".\x08").expect("valid").replace_all(&shown, "").into_owned()
    };
    let table = buildkit_lb::cli::command();
    let page = shown(&["man"]);
    for command in table.get_subcommands() {
        assert!(page.contains(command.get_name()), "{} is missing in: {page}", command.get_name());
    }
    let page = shown(&["man", "serve"]);
    let serve = table.find_subcommand("serve").expect("a command");
    for flag in serve.get_arguments().filter_map(|arg| arg.get_long()) {
        assert!(page.contains(&format!("--{flag}")), "--{flag} is missing in: {page}");
    }
    let unknown = lb(&["man", "no-such-command"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("buildkit-lb has no command `no-such-command`"));
}
