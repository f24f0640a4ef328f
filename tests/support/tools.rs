//! Where the real programs are.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The path of buildkitd, buildctl or buildx: from `BUILDKIT_LB_TOOLS`, else installed now.
pub(crate) fn tool(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| match std::env::var_os("BUILDKIT_LB_TOOLS") {
        Some(directory) => directory.into(),
        None => install("tests/tools/install"),
    });
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing: run tests/tools/install", path.display());
    path
}

/// The path of kube-apiserver, kube-controller-manager, kubectl or helm.
pub(crate) fn kubernetes_tool(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| install("tests/tools/kubernetes/install")).join(name)
}

/// The definitions of the kinds that are not Kubernetes' own.
pub(crate) fn definitions() -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| install("tests/tools/crds/install")).clone()
}

/// Runs an install script; the directory it names last.
fn install(script: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(path).output().expect("the script runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} failed: {told}");
    stdout.lines().last().expect("it prints a directory").into()
}
