//! The projects that are built: small Dockerfiles whose steps take time. No two are alike.

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
    /// The remote of the checkout, as buildx sends it.
    pub(crate) repository: String,
    steps: u64,
}

impl Project {
    /// Makes the project with this number in `dir`.
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

    /// The size of the project in a daemon's cache, in bytes: the context counts twice, as sent and as copied.
    pub(crate) fn cache_len(&self) -> u64 {
        let busybox = fs::metadata(self.context.join("busybox")).map_or(0, |file| file.len());
        2 * busybox + self.steps * STEP_KIB * 1024
    }
}

/// Steps of about a second. They sleep, so that the load of the machine hardly matters.
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
