//! What processes have used, according to the kernel.

use std::fs;

use anyhow::{Result, anyhow};

/// What a process and its descendants have used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time since the start of the processes, in seconds.
    pub(crate) cpu: f64,
    /// Memory that no other process shares, in bytes.
    pub(crate) private: f64,
    /// All resident memory, in bytes.
    pub(crate) resident: f64,
}

impl Usage {
    /// Asks the kernel.
    pub(crate) fn of_tree(root: u32) -> Result<Self> {
        let mut sum = Self::default();
        let parents = parents()?;
        let mut pending = vec![root];
        while let Some(pid) = pending.pop() {
            sum.add_process(pid)?;
            pending.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(pid, _)| pid));
        }
        Ok(sum)
    }

    fn add_process(&mut self, pid: u32) -> Result<()> {
        let stat = stat_fields(pid).ok_or_else(|| anyhow!("process {pid} is gone"))?;
        // Fields 14 and 15 of stat(5); the fields here begin with field 3. Linux counts 100 ticks per second.
        let ticks: f64 = stat[11].parse::<f64>()? + stat[12].parse::<f64>()?;
        self.cpu += ticks / 100.0;
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        for line in rollup.lines() {
            let mut words = line.split_whitespace();
            let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
            let bytes = value.parse().unwrap_or(0.0) * 1024.0;
            match name {
                "Rss:" => self.resident += bytes,
                "Private_Clean:" | "Private_Dirty:" => self.private += bytes,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Every process and its parent.
fn parents() -> Result<Vec<(u32, u32)>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse() else { continue };
        // The process may have ended since the directory was read.
        let Some(stat) = stat_fields(pid) else { continue };
        parents.push((pid, stat[1].parse()?));
    }
    Ok(parents)
}

/// The fields of `/proc/PID/stat` after the name. The name may contain spaces.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
