//! Where the figures come from: the machine and the programs.

use std::{fs, num::NonZero, thread::available_parallelism};

/// One line that describes the machine.
pub(crate) fn line() -> String {
    let cpus = available_parallelism().map_or(0, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} cores ({model}), Linux {}", kernel.trim())
}

/// The cores of a proxy, and the cores of all other processes.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "not every benchmark keeps cores apart")]
pub(crate) struct Cores {
    /// The number of the proxy's cores.
    pub(crate) threads: usize,
    /// The list in the form of taskset(1).
    pub(crate) proxy: String,
    /// `None` if the machine has no further cores.
    pub(crate) others: Option<String>,
}

#[allow(dead_code, reason = "not every benchmark keeps cores apart")]
impl Cores {
    /// `count` cores for the proxy. They are its own if the machine has more.
    pub(crate) fn for_proxy(count: usize) -> Self {
        let all = available_parallelism().map_or(1, NonZero::get);
        let threads = count.clamp(1, all);
        let proxy = format!("0-{}", threads - 1);
        Self { threads, proxy, others: (threads < all).then(|| format!("{threads}-{}", all - 1)) }
    }

    /// One line that describes the split.
    pub(crate) fn line(&self) -> String {
        match &self.others {
            Some(others) => {
                format!(
                    "The proxy has the cores {}, clients and daemon share {others}.",
                    self.proxy
                )
            }
            None => "The proxy has no cores of its own: rates and times say little, CPU says more."
                .to_owned(),
        }
    }
}

/// The version of buildkitd and buildctl in the module of the tools.
pub(crate) fn buildkit() -> Option<String> {
    let modules = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/go.mod"));
    let modules = modules.ok()?;
    let rest =
        modules.lines().find_map(|line| line.trim().strip_prefix("github.com/moby/buildkit v"))?;
    let version = rest.split_whitespace().next()?;
    Some(format!("buildkitd and buildctl {version}"))
}
