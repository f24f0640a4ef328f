//! Real daemons behind a real proxy, new ones for each policy.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use buildkit_lb::policy::PolicyKind;
use serde_json::Value;

use crate::{
    buildkit::Buildkit,
    process::{Process, free_address},
    tools::tool,
};

/// How often the disks of the daemons are pruned to their limit. buildkitd's own collection comes at most once a
/// minute, and here the builds of a day take a minute or two.
const PRUNE_INTERVAL: Duration = Duration::from_secs(1);

/// The proxy logs a build when its Solve ends, which may be after its client has gone.
const LOG_TIMEOUT: Duration = Duration::from_secs(5);

/// What the proxy's log says about a build.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) backend: String,
    /// Why the build was placed there.
    pub(crate) reason: String,
    /// The builds that ran on the backend.
    pub(crate) load: u64,
}

/// The proxy and its daemons.
#[derive(Debug)]
pub(crate) struct Fleet {
    address: SocketAddr,
    log: PathBuf,
    // The proxy is dropped before its daemons.
    _proxy: Process,
    _daemons: Vec<Buildkit>,
}

impl Fleet {
    /// Starts daemons and proxy, with their files in `dir`.
    pub(crate) fn start(
        proxy: &Path,
        daemons: usize,
        policy: PolicyKind,
        dir: &Path,
    ) -> Result<Self> {
        let daemons = (0..daemons)
            .map(|number| Buildkit::start(&dir.join(backend_name(number)), &[]))
            .collect::<Result<Vec<_>>>()?;
        let address = free_address()?;
        let mut command = vec![
            proxy.display().to_string(),
            "serve".into(),
            format!("--listen=tcp://{address}"),
            "--admin-listen=127.0.0.1:0".into(),
            "--log-format=json".into(),
            format!("--policy={policy}"),
        ];
        let backends = daemons.iter().enumerate();
        command.extend(backends.map(|(number, daemon)| {
            format!("--backend={}=tcp://{}", backend_name(number), daemon.address())
        }));
        let log = dir.join("proxy.log");
        let mut process = Process::start(&command, &log)?;
        process.wait_until_listening(address, &log).context("start the proxy")?;
        Ok(Self { address, log, _proxy: process, _daemons: daemons })
    }

    /// The address for clients.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The backend of each of `builds` builds, by the build's ref.
    pub(crate) fn placements(&self, builds: usize) -> Result<HashMap<String, Placement>> {
        let started = Instant::now();
        loop {
            let placements = read_placements(&self.log)?;
            if placements.len() >= builds {
                return Ok(placements);
            }
            if started.elapsed() > LOG_TIMEOUT {
                bail!("the proxy's log tells of {} builds out of {builds}", placements.len());
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Keeps every daemon's cache below `limit` bytes until the sender of `ended` is dropped.
    pub(crate) fn keep_below(&self, limit: f64, ended: &Receiver<()>) -> Result<()> {
        while ended.recv_timeout(PRUNE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            // The proxy passes the prune to each daemon.
            let output = Command::new(tool("buildctl"))
                .arg(format!("--addr=tcp://{}", self.address))
                .args(["prune", "--all", "--keep-storage", &format!("{:.1}", limit / 1e6)])
                .output()
                .context("run buildctl prune")?;
            if !output.status.success() {
                bail!("prune: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }
}

/// The name of a daemon for the proxy.
fn backend_name(number: usize) -> String {
    format!("buildkitd-{number}")
}

fn read_placements(log: &Path) -> Result<HashMap<String, Placement>> {
    let mut placements = HashMap::new();
    for line in fs::read_to_string(log).context("read the proxy's log")?.lines() {
        let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
        let fields = &record["fields"];
        let text = |name: &str| fields[name].as_str().map(str::to_owned);
        if fields["message"] == "build ended"
            && let (Some(build), Some(backend), Some(reason)) =
                (text("ref"), text("backend"), text("outcome"))
        {
            let load = fields["load"].as_u64().unwrap_or_default();
            placements.insert(build, Placement { backend, reason, load });
        }
    }
    Ok(placements)
}
