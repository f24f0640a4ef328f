//! The profile by which the compiler optimises a release.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::{
    ROOT,
    support::{
        client::{run, succeed, text},
        tools::tool,
    },
};

/// What Cargo runs in place of the compiler.
fn wrapper() -> Command {
    Command::new(Path::new(ROOT).join("pgo/rustc"))
}

/// Gives `checkout` the files that name the versions of the code, and has the compiler's profile count as made with those.
pub(super) fn renew(checkout: &Path) {
    fs::create_dir_all(checkout.join("pgo")).expect("a directory");
    for file in ["Cargo.lock", "Cargo.toml", "rust-toolchain.toml", "pgo/train"] {
        fs::copy(Path::new(ROOT).join(file), checkout.join(file)).expect(file);
    }
    let versions = succeed(train(checkout).arg("--versions"));
    fs::write(checkout.join("pgo/made-from"), versions).expect("a file");
}

/// The script of `checkout` that makes the profile.
fn train(checkout: &Path) -> Command {
    let mut script = Command::new(tool("bash"));
    script.arg(checkout.join("pgo/train"));
    script
}

/// The last argument of a compiler that is given `flag`.
fn last_argument(flag: &str) -> String {
    succeed(wrapper().arg(tool("bash")).args(["-c", "echo \"${@: -1}\"", "rustc", "-C", flag]))
}

#[test]
fn what_is_optimised_for_a_release_gets_the_profile() {
    let profile = format!("-Cprofile-use={ROOT}/pgo/release.profdata");
    assert_eq!(last_argument("opt-level=3").trim(), profile);
    for other in ["opt-level=0", "opt-level=3 -Cprofile-use=another", "profile-generate=there"] {
        assert_eq!(last_argument(other).trim(), other);
    }
}

#[test]
fn the_pinned_compiler_reads_the_profile() {
    let dir = TempDir::new().expect("a directory");
    let source = dir.path().join("code.rs");
    fs::write(&source, "pub fn f() {}").expect("a file");
    let mut compile = wrapper();
    compile.arg(Path::new(env!("CARGO")).with_file_name("rustc"));
    compile.args(["-C", "opt-level=3", "--crate-type=lib", "--emit=obj", "--out-dir"]);
    let compiled = run(compile.arg(dir.path()).arg(source));
    assert!(compiled.status.success() && text(&compiled).is_empty(), "{compiled:?}");
}

#[test]
fn a_profile_of_other_dependencies_is_told_from_that_of_these() {
    let dir = TempDir::new().expect("a directory");
    renew(dir.path());
    let check = || run(train(dir.path()).arg("--check"));
    let same = check();
    assert!(same.status.success(), "{same:?}");
    fs::write(dir.path().join("Cargo.lock"), "").expect("a file");
    let refused = check();
    assert!(!refused.status.success() && text(&refused).contains("make it anew"), "{refused:?}");
}
