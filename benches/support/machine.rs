//! Where figures come from: the machine, and the programs that took part.

use std::fs;

/// One line about the machine.
pub(crate) fn line() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cpus} cores ({model}), Linux {}", kernel.trim())
}

/// The version of buildkitd and buildctl, as the module of the tools has it.
pub(crate) fn buildkit() -> Option<String> {
    let modules = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/go.mod"));
    let modules = modules.ok()?;
    let rest =
        modules.lines().find_map(|line| line.trim().strip_prefix("github.com/moby/buildkit v"))?;
    let version = rest.split_whitespace().next()?;
    Some(format!("buildkitd and buildctl {version}"))
}
