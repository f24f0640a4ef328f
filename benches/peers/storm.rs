//! The load of `build-storm`: many lanes of short builds one after the other, from a process with many threads.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::task::JoinSet;

use crate::{
    daemon,
    grpc::{self, Build, Client},
    machine::Cores,
    process,
};

/// The first argument of the process that makes the load.
pub(crate) const ROLE: &str = "storm";

/// Clients that build at the same time, each at an address of its own.
const LANES: u8 = 64;

/// The size of a storm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Storm {
    /// Builds of all clients together.
    pub(crate) builds: usize,
    /// Bytes that each build's Session sends to the daemon.
    pub(crate) upload: u64,
}

/// The results of a storm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) builds_per_second: f64,
    /// The time of each build, in milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

impl Storm {
    /// Runs the storm against `targets` in a process of its own, on other cores than the proxy's `cores`.
    pub(crate) fn run(self, targets: &[SocketAddr], cores: &Cores) -> Result<Outcome> {
        let Self { builds, upload } = self;
        let mut words = vec![ROLE.to_owned(), builds.to_string(), upload.to_string()];
        words.extend(targets.iter().map(ToString::to_string));
        let output = process::own_role(&words, Some(cores)).output().context("start the storm")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let figures: Vec<f64> =
            text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [builds_per_second, p50, p99] = figures[..] else { bail!("no figures: {text}") };
        Ok(Outcome { builds_per_second, p50, p99 })
    }
}

/// The role of that process. `words` are the number of builds, the bytes of each build, and the targets.
pub(crate) async fn role(words: &[String]) -> Result<()> {
    let [builds, upload, targets @ ..] = words else { bail!("usage: {ROLE} BUILDS BYTES TARGETS") };
    let (targets, upload) = (parsed(targets)?, upload.parse()?);
    ensure!(!targets.is_empty(), "no target");
    let left = Arc::new(AtomicUsize::new(builds.parse()?));
    let started = Instant::now();
    let mut lanes = JoinSet::new();
    for (number, target) in (1..=LANES).zip(targets.iter().cycle()) {
        let client = Ipv4Addr::new(127, 0, 0, number);
        lanes.spawn(lane(client, *target, upload, Arc::clone(&left)));
    }
    let mut times = Vec::new();
    while let Some(lane) = lanes.join_next().await {
        times.extend(lane??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(f64::NAN);
    println!("{rate} {} {}", at(50), at(99));
    Ok(())
}

fn parsed(addresses: &[String]) -> Result<Vec<SocketAddr>> {
    addresses.iter().map(|address| Ok(address.parse()?)).collect()
}

/// Builds from the address `client` while any builds are `left`. Returns how long each build took, in milliseconds.
async fn lane(
    client: Ipv4Addr,
    target: SocketAddr,
    upload: u64,
    left: Arc<AtomicUsize>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let take =
        || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
    while take().is_ok() {
        let started = Instant::now();
        build(client, target, upload).await?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// One build on a connection of its own, like a run of buildctl.
async fn build(client: Ipv4Addr, target: SocketAddr, upload: u64) -> Result<()> {
    let client = Client::connect_from(client, target).await?;
    let workers = "/moby.buildkit.v1.Control/ListWorkers";
    client.unary(workers, &[], grpc::frame(b"")).await?;
    let mut build = Build::open(&client, 0).await?;
    daemon::send_bulk(build.session(), upload).await?;
    build.end(&client).await?;
    Ok(())
}
