//! Child processes, and what the kernel says they used.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

/// A loaded machine may take seconds to start a daemon; longer means that it never will.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// After SIGTERM; then SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A child that is stopped, with its own children, when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`; what it prints goes to `log`.
    ///
    /// The kernel sends it SIGTERM if this program dies first.
    pub(crate) fn start(command: &[String], log: &Path) -> Result<Self> {
        let log_file =
            fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(log_file.try_clone()?)
            .stderr(log_file)
            .spawn()
            .with_context(|| format!("start {}", command[0]))?;
        Ok(Self { child })
    }

    /// Waits until something accepts connections on `address`.
    pub(crate) fn wait_until_listening(&mut self, address: SocketAddr, log: &Path) -> Result<()> {
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            let exited = self.child.try_wait()?;
            if exited.is_some() || started.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(log).unwrap_or_default();
                bail!("nothing listens on {address} (exit: {exited:?}); log:\n{log}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        Usage::of_tree(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // nginx's workers end with their master only when it is asked nicely.
        let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if started.elapsed() > STOP_TIMEOUT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// An address on loopback that nothing listened on a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What a process and its descendants have used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time since their start, in seconds.
    pub(crate) cpu: f64,
    /// Memory that is theirs alone, in bytes.
    pub(crate) private: f64,
    /// All resident memory, in bytes.
    pub(crate) resident: f64,
}

impl Usage {
    fn of_tree(root: u32) -> Result<Self> {
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
        // Fields 14 and 15 of stat(5); ours start at field 3. 100 ticks a second on every Linux.
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
        // It may have ended since the directory was read.
        let Some(stat) = stat_fields(pid) else { continue };
        parents.push((pid, stat[1].parse()?));
    }
    Ok(parents)
}

/// The fields of `/proc/PID/stat` after the name, which may itself hold spaces.
fn stat_fields(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}
