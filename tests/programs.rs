//! The ground of the tests: every program is installed before a test starts it, because a fresh machine has none, and
//! a run tells at its end which tests failed.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use regex::Regex;
use support::{
    client::{run, succeed, text},
    tools::{shell, tool},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The Rust sources below `directory`.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let found = paths.flat_map(|path| match path.extension() {
        _ if path.is_dir() => sources(&path),
        Some(extension) if extension == "rs" => vec![path],
        _ => Vec::new(),
    });
    found.collect()
}

/// The programs that `text` starts without asking `tool` for them.
fn found_elsewhere(text: &str) -> Vec<String> {
    let start = Regex::new(
        r"(?:Command::new|Guarded::start(?:_in)?|Process::start)\(\s*([^\s,;()]+\(?[^\s,;()]*)",
    );
    let known = Regex::new(concat!(
        // A program from `tool`, the project's own binary or scripts, or cargo, which runs the test.
        r#"^&?tool\(|^env!\("CARGO|^Path::new\(ROOT|^std::env::current_exe\("#,
        // Lists of words in the benchmarks. The first word is checked where the list is made.
        r"|^&command$",
    ));
    let (start, known) = (start.expect("valid"), known.expect("valid"));
    let programs = start.captures_iter(text).map(|found| found[1].to_owned());
    programs.filter(|program| !known.is_match(program)).collect()
}

#[test]
fn every_program_that_is_started_is_installed_first() {
    for (text, fine) in [
        ("Command::new(tool(\"ip\"))", true),
        ("Guarded::start_in(&tool(\"etcd\"), &args, &path)", true),
        ("Command::new(\"ip\")", false),
        ("Command::new(\n    \"ip\",\n)", false),
        ("Guarded::start_in(Path::new(\"/usr/bin/etcd\"), &args, &path)", false),
        ("Guarded::start(Path::new(PATH), &args)", false),
        ("Command::new(program)", false),
    ] {
        assert_eq!(found_elsewhere(text).is_empty(), fine, "{text}");
    }
    let directories = ["tests", "benches"].map(|name| Path::new(ROOT).join(name));
    let sources: Vec<_> = directories.iter().flat_map(|path| sources(path)).collect();
    assert!(sources.len() > 40, "{}", sources.len());
    let own = [
        // These files run the scripts that install programs.
        ("tests/support/tools.rs", "path"),
        // Comes with cargo.
        ("tests/image.rs", "\"rustc\""),
        // Envoy, which benches/run installs, or a path from `tool`.
        ("benches/peers/candidate.rs", "program"),
    ];
    for source in sources {
        if source.ends_with("tests/programs.rs") {
            continue;
        }
        let text = fs::read_to_string(&source).expect("a file");
        for program in found_elsewhere(&text) {
            let known = own.iter().any(|(file, own)| source.ends_with(file) && program == *own);
            assert!(known, "{} starts {program}, which nothing installs", source.display());
        }
    }
}

#[test]
fn a_program_that_no_package_is_known_for_is_refused_where_it_is_installed() {
    let script = Path::new(ROOT).join("tests/tools/program");
    // Every machine that compiles this has a linker.
    let output = run(Command::new(script).arg("ld"));
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("names no package for ld"), "{}", text(&output));
}

#[test]
fn what_is_taken_for_granted_is_on_every_debian() {
    let script = r#"
        source tests/tools/common.bash
        found=$(dpkg-query --search "${on_every_debian[@]/#/*bin/}")
        for program in "${on_every_debian[@]}"; do
            package=$(grep -m 1 "bin/$program$" <<<"$found")
            dpkg-query --show --showformat "$program \${Priority}\n" "${package%%:*}"
        done"#;
    let told = succeed(shell(script, &[]).current_dir(ROOT));
    let granted: BTreeSet<_> = told.lines().collect();
    assert!(granted.contains("cp required"), "{told}");
    assert!(granted.iter().all(|line| line.ends_with(" required")), "{told}");
}

#[test]
fn the_tools_tell_the_version_that_their_module_asks_for() {
    let modules = fs::read_to_string(Path::new(ROOT).join("tests/tools/go.mod")).expect("a file");
    for (program, flag, module) in [
        ("buildkitd", "--version", "github.com/moby/buildkit"),
        ("buildctl", "--version", "github.com/moby/buildkit"),
        ("buildx", "version", "github.com/docker/buildx"),
    ] {
        let line = modules.lines().find_map(|line| line.trim().strip_prefix(&format!("{module} ")));
        let version = line.expect("a module").split_whitespace().next().expect("a version");
        let told = succeed(Command::new(tool(program)).arg(flag));
        assert!(told.contains(&format!(" {version} ")), "{told}");
    }
}

/// Writes a program of `text` that a shell runs, and returns its path.
fn script(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("changed");
    path.display().to_string()
}

/// Runs `tests/run` with a cargo of whose three test programs the second fails with `failures`. Run again, that
/// program behaves as `again` says. Returns the exit code and what was printed.
fn run_of_tests(failures: &[&str], again: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let second = script(directory.path(), "second", again);
    let failed: String = failures.iter().map(|name| format!("test {name} ... FAILED\n")).collect();
    let output = format!(
        "     Running unittests src/lib.rs (target/debug/deps/lib-0)\n\
        test a::works ... ok\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
        \x20    Running tests/second.rs ({second})\n{failed}\
        test it_works ... ok\n\
        test result: FAILED. 1 passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n\
        \x20  Doc-tests buildkit_lb\n\
        test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
        error: 1 target failed:\n    `--test second`\n",
        failures.len(),
    );
    let text_of_cargo = format!("echo \"asked: $*\"\ncat <<'END'\n{output}END\nexit 101");
    let cargo = script(directory.path(), "cargo", &text_of_cargo);
    let mut tests = Command::new(Path::new(ROOT).join("tests/run"));
    let result = run(tests.args(["--test", "second"]).env("CARGO", &cargo));
    let told = text(&result);
    assert!(told.contains("asked: test --locked --no-fail-fast --test second\n"), "{told}");
    assert!(told.contains(&output), "{told}");
    (result.status.code(), told)
}

#[test]
fn a_test_run_goes_on_after_a_failure_and_sums_up() {
    let (code, told) = run_of_tests(&["it_fails"], "echo \"again: $*\"; exit 101");
    assert_eq!(code, Some(101), "{told}");
    assert!(told.contains("again: --exact it_fails\n"), "{told}");
    let end = "\nfailed:\n  tests/second.rs: it_fails\n\n2 passed, 1 failed\n";
    assert!(told.ends_with(end), "{told}");
}

#[test]
fn a_test_that_passes_when_run_again_alone_is_told_as_unstable() {
    let (code, told) = run_of_tests(&["it_fails"], "exit 0");
    assert_eq!(code, Some(0), "{told}");
    let unstable = "\nunstable, passed when run again alone:\n  tests/second.rs: it_fails\n";
    assert!(told.ends_with(&format!("{unstable}\n3 passed, 0 failed\n")), "{told}");
    let (code, told) = run_of_tests(&["fails", "fails_always"], "[ \"$2\" = fails ]");
    assert_eq!(code, Some(101), "{told}");
    let end = "\nfailed:\n  tests/second.rs: fails_always\n\n3 passed, 1 failed\n";
    assert!(told.ends_with(end), "{told}");
}

#[test]
fn many_failures_are_no_accident_and_nothing_is_run_again() {
    let (code, told) = run_of_tests(&["a", "b", "c", "d"], "echo again");
    assert_eq!(code, Some(101), "{told}");
    assert!(!told.contains("again\n"), "{told}");
    assert!(told.ends_with("\n2 passed, 4 failed\n"), "{told}");
}
