//! The programs that tests start: installed first, so that a fresh machine has them too.

use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    sync::{LazyLock, OnceLock},
};

use parking_lot::Mutex;

/// The path of a program, which is installed now if the machine lacks it.
///
/// Every program that a test starts comes from here, except the project's own and cargo; a test that
/// starts one at a time that counts asks for it before.
pub(crate) fn tool(name: &str) -> PathBuf {
    static FOUND: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Mutex::default);
    // Locked while it is installed: other threads want the same programs.
    let mut found = FOUND.lock();
    let path = found.entry(name.to_owned()).or_insert_with(|| ask("tests/tools/program", &[name]));
    path.clone()
}

/// A shell that runs `script`, whose programs beyond those of every Debian are `programs`.
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

/// Runs an install script; the path it prints last.
fn ask(script: &str, args: &[&str]) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(path).args(args).output().expect("the script runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} {args:?} failed: {told}");
    stdout.lines().last().expect("it prints a path").into()
}
