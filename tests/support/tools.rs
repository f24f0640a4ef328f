//! The programs that tests start. Each is installed first, so that a fresh machine has it too.

use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, OnceLock},
};

use parking_lot::Mutex;

/// The path of a program. If the machine lacks the program, it is installed now.
///
/// Every program that a test starts comes from here, except the project's own and cargo. A test that measures times
/// asks for its programs before.
pub(crate) fn tool(name: &str) -> PathBuf {
    static FOUND: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    // Other threads may want the same program, so a lock is held during the installation.
    let mut found = FOUND.lock();
    let path = found.entry(name.to_owned()).or_insert_with(|| ask("tests/tools/program", &[name]));
    path.clone()
}

/// A shell that runs `script`. `programs` are those that not every Debian has.
pub(crate) fn shell(script: impl AsRef<OsStr>, programs: &[&str]) -> Command {
    for program in programs {
        tool(program);
    }
    let mut shell = Command::new(tool("bash"));
    shell.arg("-c").arg(script);
    shell
}

/// The definitions of the kinds that are not Kubernetes' own.
pub(crate) fn definitions() -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| ask("tests/tools/crds/install", &[])).clone()
}

/// The script of axe-core, which checks in a browser that a page can be used by everybody.
pub(crate) fn axe() -> PathBuf {
    static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
    SCRIPT.get_or_init(|| ask("tests/tools/axe/install", &[])).clone()
}

/// Runs an install script and returns the last path that it prints.
fn ask(script: &str, args: &[&str]) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(path).args(args).output().expect("the script runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} {args:?} failed: {told}");
    stdout.lines().last().expect("it prints a path").into()
}
