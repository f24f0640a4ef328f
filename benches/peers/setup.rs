//! How a storm is set up: how many daemons there are, and which cores everybody has.

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{machine::Cores, process, storm};

/// The first argument of the process that runs the daemon.
pub(crate) const DAEMON_ROLE: &str = "daemon";

/// One way to set up a storm.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The daemons behind the proxy. The calls of one client all go to one of them.
    pub(crate) daemons: usize,
    pub(crate) cores: Cores,
}

impl Setup {
    /// The setups for these numbers of daemons and of the proxy's threads. A number of threads that the machine has no
    /// cores for is left out.
    pub(crate) fn all(daemons: &[usize], threads: &[usize]) -> Vec<Self> {
        let mut cores: Vec<_> = threads.iter().map(|count| Cores::for_proxy(*count)).collect();
        cores.dedup_by_key(|cores| cores.threads);
        let with = |daemons: usize| {
            cores.iter().map(move |cores| Self { daemons: daemons.max(1), cores: cores.clone() })
        };
        daemons.iter().flat_map(|daemons| with(*daemons)).collect()
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        let (daemons, threads) = (self.daemons, self.cores.threads);
        write!(f, "{daemons} daemon{}, {threads} thread{}", plural(daemons), plural(threads))
    }
}

/// This program in the role of the daemon, in a process of its own.
#[derive(Debug)]
pub(crate) struct FakeDaemon {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl FakeDaemon {
    /// Starts the daemon. For a storm it has several threads, on other cores than the proxy's `cores`.
    pub(crate) fn start(cores: Option<&Cores>) -> Result<Self> {
        let mut words = vec![DAEMON_ROLE.to_owned()];
        words.extend(cores.map(|_| storm::ROLE.to_owned()));
        let mut child = process::own_role(&words, cores)
            .stdout(Stdio::piped())
            .spawn()
            .context("start the fake daemon")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the fake daemon has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.trim().parse().context("read the fake daemon's address")?;
        Ok(Self { child, address })
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
