//! The projects that are built: small Dockerfiles whose steps take time, no two alike.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::tools::tool;

/// What a step leaves in the cache, in KiB.
const STEP_KIB: u64 = 2048;

/// A repository with a Dockerfile.
#[derive(Debug)]
pub(crate) struct Project {
    pub(crate) context: PathBuf,
    /// What buildx would send as the checkout's remote.
    pub(crate) repository: String,
    steps: u64,
}

impl Project {
    /// Creates the project with this number in `dir`.
    pub(crate) fn create(number: usize, dir: &Path) -> Result<Self> {
        let name = format!("project-{number:02}");
        let context = dir.join(&name);
        fs::create_dir_all(&context)?;
        fs::copy(tool("busybox"), context.join("busybox"))?;
        fs::write(context.join("name"), &name)?;
        let steps = 2 + number % 3;
        fs::write(context.join("Dockerfile"), dockerfile(number, steps))?;
        let repository = format!("https://git.example/team/{name}.git");
        Ok(Self { context, repository, steps: steps as u64 })
    }

    /// What a daemon's cache holds of it, in bytes: the context twice, as sent and as copied.
    pub(crate) fn cache_len(&self) -> u64 {
        let busybox = fs::metadata(self.context.join("busybox")).map_or(0, |file| file.len());
        2 * busybox + self.steps * STEP_KIB * 1024
    }
}

/// Steps of about a second: they sleep, so that the machine's load hardly counts.
fn dockerfile(number: usize, steps: usize) -> String {
    let mut text = String::from(
        "FROM scratch\nCOPY busybox name /bin/\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n",
    );
    for step in 0..steps {
        let tenths = (number * 7 + step * 3) % 9;
        let _ = writeln!(
            text,
            "RUN busybox sleep {}.{} && \
             busybox dd if=/dev/urandom of=/step-{step} bs=1024 count={STEP_KIB}",
            usize::from(tenths >= 4),
            (6 + tenths) % 10
        );
    }
    text
}
