//! Child processes that end with this process.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{machine::Cores, tools::tool};

/// A daemon may take seconds to start on a loaded machine. After this time it will never start.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The time between SIGTERM and SIGKILL.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// This program in another role, on other cores than the proxy's `cores` if those are kept apart.
#[allow(dead_code, reason = "not every benchmark has roles")]
pub(crate) fn own_role(words: &[String], cores: Option<&Cores>) -> Command {
    let mut command = Command::new(tool("setpriv"));
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(others) = cores.and_then(|cores| cores.others.as_ref()) {
        command.arg(tool("taskset")).args(["-c", others]);
    }
    command.arg(env::current_exe().unwrap_or_default()).args(words);
    command
}

/// A child that is stopped, together with its own children, when the value is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`, whose output goes to `log`.
    ///
    /// The kernel sends the child SIGTERM if this thread ends first, as all threads do when this program dies.
    pub(crate) fn start(command: &[String], log: &Path) -> Result<Self> {
        let log_file =
            fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new(tool("setpriv"))
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

    #[allow(dead_code, reason = "not every benchmark asks what it used")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // The workers of nginx end with their master only after SIGTERM.
        let _ = Command::new(tool("kill")).args(["-TERM", &self.child.id().to_string()]).status();
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

/// An address on loopback that nobody used a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
