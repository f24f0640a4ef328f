//! Real BuildKit: one buildkitd on a memory file system, and buildctl as its client.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{Process, free_address},
    tools::tool,
};

/// A running buildkitd and its files.
#[derive(Debug)]
pub(crate) struct Buildkit {
    dir: PathBuf,
    address: SocketAddr,
    // The daemon is stopped before the directory is removed.
    process: Option<Process>,
}

/// The result of a run of buildctl.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) elapsed: Duration,
    /// The progress, in the form that was asked for.
    #[allow(dead_code, reason = "the peers are compared by their times alone")]
    pub(crate) progress: String,
}

impl Buildkit {
    /// Starts buildkitd with further `flags` and with all its files in `dir`, which no other daemon uses.
    pub(crate) fn start(dir: &Path, flags: &[String]) -> Result<Self> {
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        let address = free_address()?;
        let mut command = vec![
            tool("buildkitd").display().to_string(),
            format!("--addr=tcp://{address}"),
            format!("--root={}", root.display()),
            // Daemons that start at the same time would contend for the default socket.
            format!("--otel-socket-path={}", dir.join("otel.sock").display()),
            "--containerd-worker=false".into(),
            "--oci-worker=true".into(),
            "--oci-worker-binary=runc".into(),
            "--oci-worker-gc=false".into(),
        ];
        command.extend_from_slice(flags);
        let log = dir.join("log");
        let mut process = Process::start(&command, &log)?;
        process.wait_until_listening(address, &log).context("start buildkitd")?;
        Ok(Self { dir: dir.to_owned(), address, process: Some(process) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Builds the Dockerfile in `context` through `address`, with `flags` of buildctl and `args` of the build.
pub(crate) fn build(
    address: SocketAddr,
    flags: &[String],
    context: &Path,
    args: &[String],
) -> Result<Built> {
    let mut command = Command::new(tool("buildctl"));
    command
        .arg(format!("--addr=tcp://{address}"))
        .args(flags)
        .args(["build", "--frontend=dockerfile.v0"])
        .arg(format!("--local=context={}", context.display()))
        .arg(format!("--local=dockerfile={}", context.display()))
        .args(args);
    let started = Instant::now();
    let output = command.output().context("run buildctl")?;
    let elapsed = started.elapsed();
    let progress = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("build through {address} failed:\n{progress}");
    }
    Ok(Built { elapsed, progress })
}

impl Drop for Buildkit {
    fn drop(&mut self) {
        self.process.take();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
