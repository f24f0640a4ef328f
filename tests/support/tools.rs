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
        None => install(),
    });
    let path = directory.join(name);
    assert!(path.exists(), "{} is missing: run tests/tools/install", path.display());
    path
}

fn install() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/install");
    let output = Command::new(script).output().expect("tests/tools/install runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "tests/tools/install failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    stdout.lines().last().expect("tests/tools/install prints a directory").into()
}
