//! Compares buildkit-lb with its peers, side by side on one machine.
//!
//! Every candidate stands in front of the same daemon. The candidates are measured in turn, round after round, so that
//! other activity of the machine affects all of them. See benches/README.md.

#![allow(clippy::disallowed_methods, reason = "no drain waits for a benchmark")]

#[path = "../support/buildkit.rs"]
mod buildkit;
mod candidate;
mod certificates;
mod context;
mod daemon;
mod grpc;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../support/process.rs"]
mod process;
mod setup;
mod storm;
#[path = "../support/table.rs"]
mod table;
#[allow(dead_code, reason = "tests use all of it")]
#[path = "../../tests/support/tools.rs"]
mod tools;
mod usage;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum as _};

use candidate::{BUILDKIT_LB, Candidate, Target};
use setup::{DAEMON_ROLE, FakeDaemon, Setup};
use table::Table;
use workload::{Size, Stage, Workload};

#[derive(Debug, Parser)]
#[command(about = "Compares buildkit-lb with its peers")]
struct Arguments {
    /// Workloads to run [default: all]
    workloads: Vec<Workload>,
    /// Candidates to run, separated by commas [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Candidates to leave out, separated by commas
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// Rounds of each workload; storms and workloads that measure memory run a third of them
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Cores of the proxy, and so its threads, in a storm of builds: a table for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// Daemons behind the proxy in a storm of builds: tables for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    daemons: Vec<usize>,
    /// Small amounts, for development
    #[arg(long)]
    quick: bool,
    /// A binary of this project to measure. Repeatable, with different names
    #[arg(long = "lb", value_name = "[NAME=]PATH")]
    lb: Vec<String>,
    /// Directory on a memory file system for all files
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match words.split_first() {
        Some((role, rest)) if role == storm::ROLE => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            return runtime.block_on(storm::role(rest));
        }
        // The daemon has a thread for each core that it may use.
        Some((role, [storm])) if role == DAEMON_ROLE && storm == storm::ROLE => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            return runtime.block_on(daemon::serve());
        }
        _ => {}
    }
    // Client and daemon have one thread each, so that the proxy can use the other cores.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if words.first().map(String::as_str) == Some(DAEMON_ROLE) {
        return runtime.block_on(daemon::serve());
    }
    runtime.block_on(run(&Arguments::parse()))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let scratch =
        tempfile::Builder::new().prefix("buildkit-lb-bench").tempdir_in(&arguments.scratch)?;
    let candidates = arguments.candidates()?;
    println!("{}; client, proxy and daemon share them.", machine::line());
    println!("{}.\n", candidate::versions());
    for workload in arguments.workloads() {
        let mut done: Option<(Setup, Table)> = None;
        for setup in arguments.setups(workload) {
            let (candidates, dir) = (&candidates, scratch.path());
            let bench = Bench { arguments, candidates, workload, setup, dir };
            let table = bench.run().await.with_context(|| format!("workload {workload:?}"))?;
            println!("### {}\n\n{}", bench.title(), table.markdown("median"));
            if let Some(setup) = &bench.setup {
                println!("{}\n", setup.cores.line());
            }
            println!("{}", table.verdicts(BUILDKIT_LB, workload.goals()));
            let Some(setup) = bench.setup else { continue };
            // Threads that share their cores with clients and daemons tell nothing about their number.
            let comparable = |(before, _): &(Setup, Table)| {
                before.daemons == setup.daemons && setup.cores.others.is_some()
            };
            if let Some((before, slower)) = done.filter(comparable) {
                let (fewer, threads) = (before.cores.threads, setup.cores.threads);
                let row = format!("builds a second, {threads} threads ÷ {fewer}");
                println!("{}", table.divided(&slower, 0, &row));
            }
            done = Some((setup, table));
        }
    }
    Ok(())
}

impl Arguments {
    fn candidates(&self) -> Result<Vec<Candidate>> {
        let mut candidates = Candidate::PEERS.to_vec();
        for lb in &self.lb {
            let (name, binary) = lb.split_once('=').unwrap_or((BUILDKIT_LB, lb));
            let binary = Path::new(binary)
                .canonicalize()
                .with_context(|| format!("find the binary {binary}"))?;
            candidates.push(Candidate::BuildkitLb { name: name.to_owned(), binary });
        }
        let named = |names: &[String], candidate: &Candidate| {
            names.iter().any(|name| name == candidate.name())
        };
        candidates.retain(|candidate| {
            (self.only.is_empty() || named(&self.only, candidate))
                && !named(&self.without, candidate)
        });
        Ok(candidates)
    }

    fn workloads(&self) -> Vec<Workload> {
        if self.workloads.is_empty() {
            Workload::value_variants().to_vec()
        } else {
            self.workloads.clone()
        }
    }

    /// The setups of `workload`: one with one daemon, or each that was asked for if it is a storm.
    fn setups(&self, workload: Workload) -> Vec<Option<Setup>> {
        if workload.is_storm() {
            Setup::all(&self.daemons, &self.threads).into_iter().map(Some).collect()
        } else {
            vec![None]
        }
    }

    fn size(&self) -> Size {
        if self.quick { Size::QUICK } else { Size::FULL }
    }
}

/// Runs one workload with all candidates.
struct Bench<'a> {
    arguments: &'a Arguments,
    candidates: &'a [Candidate],
    workload: Workload,
    /// How a storm is set up.
    setup: Option<Setup>,
    dir: &'a Path,
}

impl Bench<'_> {
    fn title(&self) -> String {
        let title = self.workload.title();
        self.setup.as_ref().map_or(title.to_owned(), |setup| format!("{title}, {setup}"))
    }

    async fn run(&self) -> Result<Table> {
        let names = self
            .candidates
            .iter()
            .map(|candidate| (candidate.name().to_owned(), candidate.title().to_owned()));
        let mut table = Table::new(self.workload.figures(), names);
        let stage = self.workload.prepare(&self.arguments.size(), self.dir)?;
        if self.workload.needs_fresh_proxy() {
            for round in 0..self.arguments.rounds.div_ceil(3) {
                for index in self.order(round) {
                    let (target, _daemons) = self.start(index, &stage)?;
                    self.measure(index, &stage, &target, &mut table).await?;
                }
            }
        } else {
            let targets = (0..self.candidates.len())
                .map(|index| self.start(index, &stage))
                .collect::<Result<Vec<_>>>()?;
            for round in 0..self.arguments.rounds {
                for index in self.order(round) {
                    self.measure(index, &stage, &targets[index].0, &mut table).await?;
                }
            }
        }
        Ok(table)
    }

    /// Each round begins with another candidate, because the first one may find a colder machine.
    fn order(&self, round: usize) -> impl Iterator<Item = usize> + use<> {
        let len = self.candidates.len();
        (0..len).map(move |position| (position + round) % len)
    }

    fn start(&self, index: usize, stage: &Stage) -> Result<(Target, Vec<FakeDaemon>)> {
        let cores = self.setup.as_ref().map(|setup| &setup.cores);
        let (addresses, daemons) = match stage {
            Stage::Real { buildkit, .. } => (vec![buildkit.address()], Vec::new()),
            Stage::Fake => {
                let count = self.setup.as_ref().map_or(1, |setup| setup.daemons);
                let daemons = (0..count).map(|_| FakeDaemon::start(cores));
                let daemons = daemons.collect::<Result<Vec<_>>>()?;
                (daemons.iter().map(|daemon| daemon.address).collect(), daemons)
            }
        };
        let certificates = stage.certificates();
        let target = self.candidates[index].start(addresses, self.dir, cores, certificates)?;
        Ok((target, daemons))
    }

    async fn measure(
        &self,
        index: usize,
        stage: &Stage,
        target: &Target,
        table: &mut Table,
    ) -> Result<()> {
        let values = self
            .workload
            .measure(&self.arguments.size(), stage, target, self.setup.as_ref())
            .await
            .with_context(|| format!("through {}", target.name))?;
        eprintln!("{:?} {} {values:.2?}", self.workload, target.name);
        table.add(index, values);
        Ok(())
    }
}
