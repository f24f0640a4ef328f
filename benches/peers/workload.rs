//! The workloads: what each does with a candidate, and which figures it gives.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use h2::SendStream;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    buildkit::{self, Buildkit},
    candidate::Target,
    certificates::Certificates,
    context, daemon,
    grpc::{self, Build, Client, Session},
    machine::Cores,
    setup::Setup,
    storm::{Outcome, Storm},
    table::{Figure, Goal, Limit},
    usage::Usage,
};

const GIB: f64 = (1u64 << 30) as f64;
const TCP_PROXIES: &[&str] = &["haproxy-tcp", "nginx-stream", "envoy-tcp"];
const HTTP2_PROXIES: &[&str] = &["haproxy-h2", "nginx-grpc", "envoy-h2"];

/// The calls of `small-rpc` that are open at once.
const STREAMS: usize = 100;

/// The builds of `many-builds` that run at once.
const CONCURRENT_BUILDS: usize = 16;

/// How long `idle-sessions` sends one message per second in every session.
const CHATTER: Duration = Duration::from_secs(5);

/// A read of a file's metadata inside a build: a small call, of which a build makes many.
const SMALL_CALL: &str = "/moby.buildkit.v1.frontend.LLBBridge/StatFile";

/// What a workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// A fully cached tiny build, real buildctl and buildkitd.
    CachedBuild,
    /// A large context to the daemon, real buildctl and buildkitd.
    ContextUp,
    /// A large export from the daemon, real buildctl and buildkitd.
    ExportDown,
    /// The first of these, with TLS between client and proxy and between proxy and daemon.
    CachedBuildTls,
    /// The second, likewise.
    ContextUpTls,
    /// The third, likewise.
    ExportDownTls,
    /// Small calls of a build, 100 at a time.
    SmallRpc,
    /// Small calls of a build, one at a time.
    OneRpc,
    /// Many sessions that are open and idle, then a little traffic in each.
    IdleSessions,
    /// Many open builds with the same traffic.
    OpenBuilds,
    /// Many short builds, one after the other.
    ManyBuilds,
    /// Short builds of 64 KiB from many clients, each on a connection of its own.
    BuildStorm,
    /// The same with builds of 8 MiB.
    BuildStormLarge,
    /// Session messages to the daemon, as fast as possible.
    BulkUp,
    /// Session messages from the daemon, as fast as possible.
    BulkDown,
}

/// The amounts of each workload: all of it, or about a tenth during development.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) cached_builds: usize,
    pub(crate) transfer: u64,
    pub(crate) small_calls: usize,
    pub(crate) single_calls: usize,
    pub(crate) idle_sessions: usize,
    pub(crate) short_builds: usize,
    pub(crate) storm_builds: usize,
    pub(crate) large_storm_builds: usize,
}

impl Size {
    pub(crate) const FULL: Self = Self {
        cached_builds: 20,
        transfer: 1 << 30,
        small_calls: 40_000,
        single_calls: 4_000,
        idle_sessions: 3_000,
        short_builds: 100_000,
        storm_builds: 20_000,
        large_storm_builds: 500,
    };
    pub(crate) const QUICK: Self = Self {
        cached_builds: 5,
        transfer: 256 << 20,
        small_calls: 10_000,
        single_calls: 1_000,
        idle_sessions: 500,
        short_builds: 4_000,
        storm_builds: 4_000,
        large_storm_builds: 100,
    };
}

/// The daemon behind all candidates, prepared for a workload.
#[derive(Debug)]
pub(crate) enum Stage {
    Fake,
    Real { buildkit: Buildkit, files: Files },
}

/// The files that the clients of a real daemon need.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    /// What clients show, where they speak TLS.
    certificates: Option<Certificates>,
}

impl Stage {
    /// What both sides show, where they speak TLS.
    pub(crate) fn certificates(&self) -> Option<&Certificates> {
        match self {
            Self::Fake => None,
            Self::Real { files, .. } => files.certificates.as_ref(),
        }
    }
}

impl Files {
    fn context(&self) -> PathBuf {
        self.dir.join("buildkit/context")
    }

    /// Builds the context. Returns how long the build took.
    fn build(&self, address: SocketAddr, args: &[String]) -> Result<Duration> {
        let flags = self.certificates.as_ref().map(Certificates::flags).unwrap_or_default();
        Ok(buildkit::build(address, &flags, &self.context(), args)?.elapsed)
    }
}

const fn figure(name: &'static str, decimals: usize, ratio: bool) -> Figure {
    Figure { name, decimals, ratio }
}

const fn goal(words: &'static str, figure: usize, limit: Limit) -> Goal {
    Goal { words, figure, limit }
}

impl Workload {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::CachedBuild => "Fully cached tiny build (buildctl, buildkitd)",
            Self::ContextUp => "Context up (buildctl, buildkitd)",
            Self::ExportDown => "Export down (buildctl, buildkitd)",
            Self::CachedBuildTls => "Fully cached tiny build, mutual TLS on both sides",
            Self::ContextUpTls => "Context up, mutual TLS on both sides",
            Self::ExportDownTls => "Export down, mutual TLS on both sides",
            Self::SmallRpc => "Small unary RPCs, 100 streams",
            Self::OneRpc => "One RPC at a time",
            Self::IdleSessions => "Idle sessions",
            Self::OpenBuilds => "Open builds",
            Self::ManyBuilds => "Short builds",
            Self::BuildStorm => "Storm of builds, 64 KiB each",
            Self::BuildStormLarge => "Storm of builds, 8 MiB each",
            Self::BulkUp => "Raw HTTP/2 bulk up",
            Self::BulkDown => "Raw HTTP/2 bulk down",
        }
    }

    /// Whether the daemon is a real buildkitd.
    pub(crate) fn is_real(self) -> bool {
        matches!(self.without_tls(), Self::CachedBuild | Self::ContextUp | Self::ExportDown)
    }

    /// The same without TLS.
    fn without_tls(self) -> Self {
        match self {
            Self::CachedBuildTls => Self::CachedBuild,
            Self::ContextUpTls => Self::ContextUp,
            Self::ExportDownTls => Self::ExportDown,
            plain => plain,
        }
    }

    /// Whether both sides speak TLS.
    fn speaks_tls(self) -> bool {
        self.without_tls() != self
    }

    /// Whether the proxy has a given number of cores.
    pub(crate) fn is_storm(self) -> bool {
        matches!(self, Self::BuildStorm | Self::BuildStormLarge)
    }

    /// Whether every round starts a new proxy: memory is measured, or the daemons would be too many to run at once.
    pub(crate) fn needs_fresh_proxy(self) -> bool {
        self.is_storm() || matches!(self, Self::IdleSessions | Self::OpenBuilds | Self::ManyBuilds)
    }

    pub(crate) fn figures(self) -> &'static [Figure] {
        const CACHED_BUILD: &[Figure] =
            &[figure("wall, ms", 1, true), figure("proxy CPU, ms a build", 1, false)];
        const REAL_TRANSFER: &[Figure] =
            &[figure("wall, s", 2, true), figure("proxy CPU, s/GiB", 2, false)];
        const SMALL_RPC: &[Figure] = &[
            figure("time, µs an RPC", 1, true),
            figure("RPCs a second", 0, true),
            figure("proxy CPU, µs an RPC", 1, false),
        ];
        const ONE_RPC: &[Figure] =
            &[figure("p50, µs", 0, true), figure("proxy CPU, µs an RPC", 0, false)];
        const IDLE_SESSIONS: &[Figure] = &[
            figure("private KiB each, untouched", 1, false),
            figure("private KiB each, after some messages", 1, false),
            figure("proxy CPU, µs a message", 0, false),
        ];
        const MANY_BUILDS: &[Figure] = &[
            figure("resident MiB before", 1, false),
            figure("resident MiB at half", 1, false),
            figure("resident MiB at the end", 1, false),
            figure("growth in the second half, %", 1, false),
            figure("builds a second", 0, true),
            figure("proxy CPU, µs a build", 0, false),
        ];
        const STORM: &[Figure] = &[
            figure("builds a second", 0, true),
            figure("p50, ms", 1, false),
            figure("p99, ms", 1, false),
            figure("proxy CPU, µs a build", 0, false),
        ];
        const BULK: &[Figure] = &[
            figure("time, s/GiB", 2, true),
            figure("GiB/s", 2, true),
            figure("proxy CPU, s/GiB", 2, false),
        ];
        match self {
            Self::CachedBuild | Self::CachedBuildTls => CACHED_BUILD,
            Self::ContextUp | Self::ExportDown | Self::ContextUpTls | Self::ExportDownTls => {
                REAL_TRANSFER
            }
            Self::SmallRpc => SMALL_RPC,
            Self::OneRpc => ONE_RPC,
            Self::IdleSessions | Self::OpenBuilds => IDLE_SESSIONS,
            Self::ManyBuilds => MANY_BUILDS,
            Self::BuildStorm | Self::BuildStormLarge => STORM,
            Self::BulkUp | Self::BulkDown => BULK,
        }
    }

    pub(crate) fn goals(self) -> &'static [Goal] {
        const CACHED_BUILD: &[Goal] = &[
            goal("bar: wall no longer than HAProxy TCP's", 0, Limit::Lowest(&["haproxy-tcp"])),
            goal("aim: at most a tenth above direct", 0, Limit::AtMostDirectTimes(1.1)),
        ];
        const REAL_TRANSFER: &[Goal] = &[
            goal("bar: wall no longer than the best TCP proxy's", 0, Limit::Lowest(TCP_PROXIES)),
            goal("bar: CPU below every HTTP/2 proxy's", 1, Limit::Lowest(HTTP2_PROXIES)),
            goal("aim: CPU below every TCP proxy's", 1, Limit::Lowest(TCP_PROXIES)),
        ];
        const SMALL_RPC: &[Goal] = &[
            goal(
                "bar: CPU below nginx's and Envoy's",
                2,
                Limit::Lowest(&["nginx-grpc", "envoy-h2"]),
            ),
            goal("aim: CPU no more than HAProxy h2's", 2, Limit::Lowest(&["haproxy-h2"])),
        ];
        const ONE_RPC: &[Goal] = &[
            goal("bar: p50 below nginx grpc_pass's", 0, Limit::Lowest(&["nginx-grpc"])),
            goal("aim: p50 below HAProxy h2's", 0, Limit::Lowest(&["haproxy-h2"])),
        ];
        const IDLE_SESSIONS: &[Goal] = &[
            goal("bar: at most 40 KiB each", 1, Limit::AtMost(40.0)),
            goal("aim: at most 15 KiB each", 1, Limit::AtMost(15.0)),
        ];
        const OPEN_BUILDS: &[Goal] =
            &[goal("aim: no more than HAProxy h2's", 1, Limit::Lowest(&["haproxy-h2"]))];
        const MANY_BUILDS: &[Goal] =
            &[goal("bar: flat, growth in % at most", 3, Limit::AtMost(2.0))];
        const STORM: &[Goal] = &[
            goal("bar: CPU at most 1.15 × HAProxy h2's", 3, Limit::AtMostTimes(1.15, "haproxy-h2")),
            goal("aim: CPU at most 0.9 × HAProxy h2's", 3, Limit::AtMostTimes(0.9, "haproxy-h2")),
        ];
        const BULK: &[Goal] = &[
            goal("time no longer than the best TCP proxy's", 0, Limit::Lowest(TCP_PROXIES)),
            goal("CPU below every HTTP/2 proxy's", 2, Limit::Lowest(HTTP2_PROXIES)),
            goal("CPU below every TCP proxy's", 2, Limit::Lowest(TCP_PROXIES)),
        ];
        // The TCP proxies decrypt nothing, so only those that do are the measure.
        const CACHED_BUILD_TLS: &[Goal] =
            &[goal("bar: wall below every HTTP/2 proxy's", 0, Limit::Lowest(HTTP2_PROXIES))];
        const TRANSFER_TLS: &[Goal] = &[
            goal(
                "bar: wall no longer than the best HTTP/2 proxy's",
                0,
                Limit::Lowest(HTTP2_PROXIES),
            ),
            goal("bar: CPU below every HTTP/2 proxy's", 1, Limit::Lowest(HTTP2_PROXIES)),
        ];
        match self {
            Self::CachedBuild => CACHED_BUILD,
            Self::CachedBuildTls => CACHED_BUILD_TLS,
            Self::ContextUp | Self::ExportDown => REAL_TRANSFER,
            Self::ContextUpTls | Self::ExportDownTls => TRANSFER_TLS,
            Self::SmallRpc => SMALL_RPC,
            Self::OneRpc => ONE_RPC,
            Self::IdleSessions => IDLE_SESSIONS,
            Self::OpenBuilds => OPEN_BUILDS,
            Self::ManyBuilds => MANY_BUILDS,
            Self::BuildStorm | Self::BuildStormLarge => STORM,
            Self::BulkUp | Self::BulkDown => BULK,
        }
    }

    /// Starts the daemon and brings it into the state in which every round begins.
    pub(crate) fn prepare(self, size: &Size, dir: &Path) -> Result<Stage> {
        if !self.is_real() {
            return Ok(Stage::Fake);
        }
        let certificates =
            self.speaks_tls().then(|| Certificates::create(&dir.join("certificates")));
        let certificates = certificates.transpose()?;
        let flags = certificates.as_ref().map(Certificates::flags).unwrap_or_default();
        let buildkit = Buildkit::start(&dir.join("buildkit"), &flags)?;
        let len = if self.without_tls() == Self::CachedBuild { 1000 } else { size.transfer };
        let files = Files { dir: dir.to_owned(), certificates };
        context::create(&files.context(), len)?;
        // This build fills the daemon's cache.
        for _ in 0..2 {
            files.build(buildkit.address(), &[])?;
        }
        Ok(Stage::Real { buildkit, files })
    }

    /// Runs one round through `target`. Returns a value for each figure.
    pub(crate) async fn measure(
        self,
        size: &Size,
        stage: &Stage,
        target: &Target,
        setup: Option<&Setup>,
    ) -> Result<Vec<f64>> {
        if let Some(setup) = setup {
            return build_storm(self.storm(size), target, &setup.cores);
        }
        match stage {
            Stage::Real { files, .. } => self.measure_real(size, target, files),
            Stage::Fake => match self {
                Self::SmallRpc => small_rpc(size.small_calls, target).await,
                Self::OneRpc => one_rpc(size.single_calls, target).await,
                Self::IdleSessions => idle_sessions(size.idle_sessions, target).await,
                Self::OpenBuilds => open_builds(size.idle_sessions, target).await,
                Self::ManyBuilds => many_builds(size.short_builds, target).await,
                Self::BulkUp => bulk(size.transfer, 0, target).await,
                _ => bulk(0, size.transfer, target).await,
            },
        }
    }

    fn storm(self, size: &Size) -> Storm {
        match self {
            Self::BuildStormLarge => Storm { builds: size.large_storm_builds, upload: 8 << 20 },
            _ => Storm { builds: size.storm_builds, upload: 64 << 10 },
        }
    }

    fn measure_real(self, size: &Size, target: &Target, files: &Files) -> Result<Vec<f64>> {
        let gib = size.transfer as f64 / GIB;
        let before = target.usage()?;
        match self.without_tls() {
            Self::CachedBuild => {
                let mut walls = Vec::new();
                for _ in 0..size.cached_builds {
                    let wall = files.build(target.address(), &[])?;
                    walls.push(wall.as_secs_f64() * 1e3);
                }
                let cpu = cpu_since(&before, target)? * 1e3 / size.cached_builds as f64;
                Ok(vec![middle(&mut walls), cpu])
            }
            Self::ContextUp => {
                context::touch(&files.context())?;
                let wall = files.build(target.address(), &[])?;
                Ok(vec![wall.as_secs_f64(), cpu_since(&before, target)? / gib])
            }
            _ => {
                let output = files.dir.join("export.tar");
                let export = format!("--output=type=tar,dest={}", output.display());
                let wall = files.build(target.address(), &[export])?;
                let cpu = cpu_since(&before, target)?;
                let len = std::fs::metadata(&output)?.len();
                std::fs::remove_file(&output)?;
                ensure!(len >= size.transfer, "the export has {len} bytes only");
                Ok(vec![wall.as_secs_f64(), cpu / gib])
            }
        }
    }
}

fn build_storm(storm: Storm, target: &Target, cores: &Cores) -> Result<Vec<f64>> {
    let before = target.usage()?;
    let Outcome { builds_per_second, p50, p99 } = storm.run(&target.addresses, cores)?;
    let cpu = cpu_since(&before, target)? * 1e6 / storm.builds as f64;
    Ok(vec![builds_per_second, p50, p99, cpu])
}

async fn small_rpc(calls: usize, target: &Target) -> Result<Vec<f64>> {
    let client = Arc::new(Client::connect(target.address()).await?);
    let build = Arc::new(Build::open(&client, 0).await?);
    call_concurrently(calls / 20, &client, &build).await?;
    let before = target.usage()?;
    let started = Instant::now();
    call_concurrently(calls, &client, &build).await?;
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = cpu_since(&before, target)?;
    if let Some(build) = Arc::into_inner(build) {
        build.end(&client).await?;
    }
    let calls = calls as f64;
    Ok(vec![elapsed * 1e6 / calls, calls / elapsed, cpu * 1e6 / calls])
}

async fn call_concurrently(calls: usize, client: &Arc<Client>, build: &Arc<Build>) -> Result<()> {
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let (client, build) = (Arc::clone(client), Arc::clone(build));
        streams.spawn(async move {
            for _ in 0..calls / STREAMS {
                small_call(&client, &build).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(stream) = streams.join_next().await {
        stream??;
    }
    Ok(())
}

async fn small_call(client: &Client, build: &Build) -> Result<u64> {
    let message = grpc::frame(&[grpc::field(1, &[b'f'; 25]), grpc::field(2, &[b'/'; 40])].concat());
    client.unary(SMALL_CALL, &build.metadata(), message).await
}

async fn one_rpc(calls: usize, target: &Target) -> Result<Vec<f64>> {
    let client = Client::connect(target.address()).await?;
    let build = Build::open(&client, 0).await?;
    for _ in 0..calls / 10 {
        small_call(&client, &build).await?;
    }
    let before = target.usage()?;
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let started = Instant::now();
        small_call(&client, &build).await?;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let cpu = cpu_since(&before, target)? * 1e6 / calls as f64;
    build.end(&client).await?;
    Ok(vec![middle(&mut times), cpu])
}

async fn idle_sessions(sessions: usize, target: &Target) -> Result<Vec<f64>> {
    let before = warmed_up(target).await?;
    let mut open = Vec::with_capacity(sessions);
    for _ in 0..sessions {
        let client = Client::connect(target.address()).await?;
        let session = Session::open(&client).await?;
        open.push((client, session));
    }
    for (_client, session) in &mut open {
        session.accepted().await?;
    }
    chatter(&before, target, &mut open, |session| &mut session.upload).await
}

async fn open_builds(builds: usize, target: &Target) -> Result<Vec<f64>> {
    let before = warmed_up(target).await?;
    let mut open = Vec::with_capacity(builds);
    for _ in 0..builds {
        let client = Client::connect(target.address()).await?;
        let build = Build::open(&client, 0).await?;
        open.push((client, build));
    }
    chatter(&before, target, &mut open, Build::session).await
}

/// The first build pays for what all later builds share.
async fn warmed_up(target: &Target) -> Result<Usage> {
    short_build(target).await?;
    target.usage()
}

/// The cost of each of `open`, before and after it has sent a message per second for a while.
async fn chatter<T>(
    before: &Usage,
    target: &Target,
    open: &mut [(Client, T)],
    upload: impl Fn(&mut T) -> &mut SendStream<Bytes>,
) -> Result<Vec<f64>> {
    let count = open.len() as f64;
    let each = |usage: &Usage| (usage.private - before.private) / 1024.0 / count;
    sleep(Duration::from_secs(1)).await;
    let opened = target.usage()?;

    let started = Instant::now();
    let mut messages = 0;
    while started.elapsed() < CHATTER {
        let round = Instant::now();
        for (index, (_, each)) in open.iter_mut().enumerate() {
            grpc::send(upload(each), grpc::bytes_message(&[0; 60]), false).await?;
            messages += 1;
            // The messages are spread over the second, as those of independent sessions are.
            let due = Duration::from_secs(1).mul_f64(index as f64 / count);
            if let Some(early) = due.checked_sub(round.elapsed()) {
                sleep(early).await;
            }
        }
    }
    sleep(Duration::from_millis(100)).await;
    let chatted = target.usage()?;
    let cpu = (chatted.cpu - opened.cpu) * 1e6 / f64::from(messages);
    Ok(vec![each(&opened), each(&chatted), cpu])
}

async fn many_builds(builds: usize, target: &Target) -> Result<Vec<f64>> {
    build_concurrently(builds / 50, target).await?;
    let before = target.usage()?;
    let started = Instant::now();
    build_concurrently(builds / 2, target).await?;
    let half = target.usage()?;
    build_concurrently(builds / 2, target).await?;
    let elapsed = started.elapsed().as_secs_f64();
    let end = target.usage()?;
    let mib = |usage: &Usage| usage.resident / f64::from(1 << 20);
    let growth = (end.resident / half.resident - 1.0) * 100.0;
    let builds = builds as f64;
    let cpu = (end.cpu - before.cpu) * 1e6 / builds;
    Ok(vec![mib(&before), mib(&half), mib(&end), growth, builds / elapsed, cpu])
}

async fn build_concurrently(builds: usize, target: &Target) -> Result<()> {
    let address = target.address();
    let mut lanes = JoinSet::new();
    for _ in 0..CONCURRENT_BUILDS {
        lanes.spawn(async move {
            for _ in 0..builds / CONCURRENT_BUILDS {
                short_build_through(address).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(lane) = lanes.join_next().await {
        lane??;
    }
    Ok(())
}

async fn short_build(target: &Target) -> Result<()> {
    short_build_through(target.address()).await
}

/// A build with the calls that buildctl makes, on a connection of its own.
async fn short_build_through(address: std::net::SocketAddr) -> Result<()> {
    let client = Client::connect(address).await?;
    let workers = "/moby.buildkit.v1.Control/ListWorkers";
    client.unary(workers, &[], grpc::frame(b"")).await?;
    let build = Build::open(&client, 0).await?;
    let solve = "/moby.buildkit.v1.frontend.LLBBridge/Solve";
    client.unary(solve, &build.metadata(), grpc::frame(&[0x52; 200])).await?;
    build.end(&client).await?;
    Ok(())
}

async fn bulk(up: u64, down: u64, target: &Target) -> Result<Vec<f64>> {
    let client = Client::connect(target.address()).await?;
    let before = target.usage()?;
    let started = Instant::now();
    let mut build = Build::open(&client, down).await?;
    daemon::send_bulk(build.session(), up).await?;
    let came_down = build.end(&client).await?;
    let elapsed = started.elapsed().as_secs_f64();
    ensure!(came_down >= down, "{came_down} of {down} bytes came down");
    let gib = (up + down) as f64 / GIB;
    Ok(vec![elapsed / gib, gib / elapsed, cpu_since(&before, target)? / gib])
}

fn cpu_since(before: &Usage, target: &Target) -> Result<f64> {
    Ok(target.usage()?.cpu - before.cpu)
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
