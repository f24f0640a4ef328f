//! Real BuildKit: one buildkitd on a memory file system, and buildctl against it.

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::process::{Process, free_address};

const CONTEXT_FILE: &str = "big";

/// A running buildkitd and the directories of what is built on it.
#[derive(Debug)]
pub(crate) struct Buildkit {
    buildctl: PathBuf,
    dir: PathBuf,
    address: SocketAddr,
    // Stopped before the directory is removed.
    process: Option<Process>,
}

impl Buildkit {
    /// Starts buildkitd from `tools`, with everything it keeps below `dir`.
    pub(crate) fn start(tools: &Path, dir: &Path) -> Result<Self> {
        let dir = dir.join("buildkit");
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        let address = free_address()?;
        let command = [
            tools.join("buildkitd").display().to_string(),
            format!("--addr=tcp://{address}"),
            format!("--root={}", root.display()),
            "--containerd-worker=false".into(),
            "--oci-worker=true".into(),
            "--oci-worker-binary=runc".into(),
            "--oci-worker-gc=false".into(),
        ];
        let log = dir.join("log");
        let mut process = Process::start(&command, &log)?;
        process.wait_until_listening(address, &log).context("start buildkitd")?;
        Ok(Self { buildctl: tools.join("buildctl"), dir, address, process: Some(process) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A context that is a Dockerfile and a file of `len` bytes, for an image that is that file.
    pub(crate) fn context(&self, len: u64) -> Result<PathBuf> {
        let context = self.dir.join("context");
        fs::create_dir_all(&context)?;
        fs::write(context.join("Dockerfile"), format!("FROM scratch\nCOPY {CONTEXT_FILE} /\n"))?;
        let mut file = File::create(context.join(CONTEXT_FILE))?;
        // Zeros could be sent or stored as a hole.
        let mut block = vec![0; 1 << 20];
        let mut written = 0;
        while written < len {
            for (index, byte) in block.iter_mut().enumerate() {
                *byte = (index as u64 * 31 + written) as u8;
            }
            let part = block.len().min(usize::try_from(len - written)?);
            file.write_all(&block[..part])?;
            written += part as u64;
        }
        Ok(context)
    }

    /// Makes the context's file look changed, so that it is sent again.
    pub(crate) fn touch(&self, context: &Path) -> Result<()> {
        let file = File::options().append(true).open(context.join(CONTEXT_FILE))?;
        Ok(file.set_modified(SystemTime::now())?)
    }

    /// Builds `context` through `address`; returns how long it took.
    pub(crate) fn build(
        &self,
        address: SocketAddr,
        context: &Path,
        output: Option<&Path>,
    ) -> Result<Duration> {
        let mut command = Command::new(&self.buildctl);
        command
            .arg(format!("--addr=tcp://{address}"))
            .args(["build", "--progress=plain", "--frontend=dockerfile.v0"])
            .arg(format!("--local=context={}", context.display()))
            .arg(format!("--local=dockerfile={}", context.display()));
        if let Some(output) = output {
            command.arg(format!("--output=type=tar,dest={}", output.display()));
        }
        let started = Instant::now();
        let result = command.output().context("run buildctl")?;
        let elapsed = started.elapsed();
        if !result.status.success() {
            bail!("build through {address} failed:\n{}", String::from_utf8_lossy(&result.stderr));
        }
        Ok(elapsed)
    }
}

impl Drop for Buildkit {
    fn drop(&mut self) {
        self.process.take();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
