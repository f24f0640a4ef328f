//! Builds many small projects repeatedly on real daemons, with each policy, and counts the steps that were found in
//! caches.
//!
//! For every policy the daemons are new and the order of the builds is the same. See benches/README.md.

#[path = "../support/buildkit.rs"]
mod buildkit;
mod fleet;
#[path = "../support/machine.rs"]
mod machine;
mod outcome;
#[path = "../support/process.rs"]
mod process;
mod project;
mod schedule;
#[path = "../support/table.rs"]
mod table;
#[allow(dead_code, reason = "tests use all of it")]
#[path = "../../tests/support/tools.rs"]
mod tools;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use buildkit_lb::policy::PolicyKind;
use clap::{Parser, ValueEnum};

use fleet::Fleet;
use outcome::{Outcome, Steps};
use project::Project;
use schedule::{Job, Schedule};
use table::Table;

/// How many times its share of the projects a daemon's disk has room for.
const DISK_SLACK: f64 = 1.4;

/// How much the daemons can keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Disk {
    /// Every daemon can keep all projects.
    Ample,
    /// A daemon can keep its share of the projects and a bit more, so that the fleet as a whole can keep everything.
    Scarce,
}

#[derive(Debug, Parser)]
#[command(about = "Builds projects again and again by each policy, on real daemons")]
struct Arguments {
    /// Policies to compare, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["random", "least-builds", "consistent-hash"])]
    policy: Vec<PolicyKind>,
    /// Sizes of the daemons' disks, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["ample", "scarce"])]
    disk: Vec<Disk>,
    #[arg(long, default_value_t = 3)]
    daemons: usize,
    #[arg(long, default_value_t = 30)]
    projects: usize,
    /// Builds of each project
    #[arg(long, default_value_t = 5)]
    builds: usize,
    /// Builds at once
    #[arg(long, default_value_t = 6)]
    parallel: usize,
    /// Seed of the order of the builds
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// 9 projects, 3 builds each, ample disks, for development
    #[arg(long)]
    quick: bool,
    /// The proxy [default: the one that was built with this program]
    #[arg(long, default_value = env!("CARGO_BIN_EXE_buildkit-lb"), hide_default_value = true)]
    lb: PathBuf,
    /// File for one line about each build, with the proxy's reason for its place
    #[arg(long)]
    records: Option<PathBuf>,
    /// Directory on a memory file system for all files
    #[arg(long, default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.projects, arguments.builds) = (9, 3);
        arguments.disk = vec![Disk::Ample];
    }
    let scratch =
        tempfile::Builder::new().prefix("buildkit-lb-bench").tempdir_in(&arguments.scratch)?;
    let projects = (0..arguments.projects)
        .map(|number| Project::create(number, &scratch.path().join("projects")))
        .collect::<Result<Vec<_>>>()?;
    let versions = machine::buildkit().map(|version| format!("; {version}")).unwrap_or_default();
    println!("{}{versions}.\n", machine::line());
    if let Some(path) = &arguments.records {
        fs::write(path, outcome::FIELDS).with_context(|| format!("write {}", path.display()))?;
    }
    let Arguments { daemons, builds, parallel, seed, .. } = arguments;
    println!(
        "{} projects built {builds} times each in a shuffled order (seed {seed}), {parallel} at a \
         time, on {daemons} daemons.\n",
        projects.len()
    );
    for &disk in &arguments.disk {
        let bench = Bench { arguments: &arguments, projects: &projects, disk };
        let table = bench.run(scratch.path())?;
        let title = match bench.disk_limit() {
            None => "Every daemon can keep all projects".to_owned(),
            Some(limit) => format!("A daemon can keep {:.0} MB of cache", limit / 1e6),
        };
        println!("### {title}\n\n{}", table.markdown("policy"));
        println!("{}", table.verdicts(&PolicyKind::ConsistentHash.to_string(), outcome::GOALS));
    }
    Ok(())
}

/// Runs all policies with daemons of one kind.
struct Bench<'a> {
    arguments: &'a Arguments,
    projects: &'a [Project],
    disk: Disk,
}

impl Bench<'_> {
    fn run(&self, dir: &Path) -> Result<Table> {
        let names =
            self.arguments.policy.iter().map(|policy| (policy.to_string(), policy.to_string()));
        let mut table = Table::new(outcome::FIGURES, names);
        for (column, &policy) in self.arguments.policy.iter().enumerate() {
            let dir = dir.join(format!("{:?}-{policy}", self.disk));
            let values = self.measure(policy, &dir).with_context(|| format!("policy {policy}"))?;
            eprintln!("{:?} {policy} {values:.2?}", self.disk);
            table.add(column, values);
        }
        Ok(table)
    }

    /// The limit of a daemon's cache, in bytes.
    fn disk_limit(&self) -> Option<f64> {
        let all: u64 = self.projects.iter().map(Project::cache_len).sum();
        let share = all as f64 / self.arguments.daemons as f64;
        (self.disk == Disk::Scarce).then_some(share * DISK_SLACK)
    }

    fn measure(&self, policy: PolicyKind, dir: &Path) -> Result<Vec<f64>> {
        fs::create_dir_all(dir)?;
        let Arguments { daemons, builds, seed, .. } = *self.arguments;
        let fleet = Fleet::start(&self.arguments.lb, daemons, policy, dir)?;
        let schedule = Schedule::new(self.projects.len(), builds, seed);
        let started = Instant::now();
        let mut builds = self.build_all(&fleet, &schedule, dir)?;
        let wall = started.elapsed().as_secs_f64();
        builds.sort_by_key(|build| build.started);
        let placements = fleet.placements(builds.len())?;
        let outcomes = builds
            .into_iter()
            .map(|build| {
                let placement =
                    placements.get(&build.reference).context("a build without a record")?;
                Ok(Outcome {
                    job: build.job,
                    placement: placement.clone(),
                    began: build.started.duration_since(started).as_secs_f64(),
                    seconds: build.seconds,
                    steps: build.steps,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        self.record(policy, &outcomes)?;
        Ok(outcome::figures(&outcomes, daemons, wall))
    }

    fn record(&self, policy: PolicyKind, outcomes: &[Outcome]) -> Result<()> {
        let Some(path) = &self.arguments.records else { return Ok(()) };
        let disk = format!("{:?}", self.disk).to_lowercase();
        let mut file = fs::OpenOptions::new().append(true).open(path)?;
        file.write_all(outcome::records(&format!("{disk},{policy}"), outcomes).as_bytes())?;
        Ok(())
    }

    /// Builds until the schedule is empty or a build fails.
    fn build_all(&self, fleet: &Fleet, schedule: &Schedule, dir: &Path) -> Result<Vec<Build>> {
        let done: Mutex<Vec<Result<Build>>> = Mutex::default();
        let client = || {
            while let Some(job) = schedule.take() {
                let built = self.build(fleet, job, dir);
                if built.is_err() {
                    schedule.abandon();
                }
                done.lock().expect("no holder panics").push(built);
                schedule.ended(job);
            }
        };
        let (all_ended, ended) = mpsc::channel();
        thread::scope(|scope| {
            let limit = self.disk_limit();
            let pruner = limit.map(|limit| scope.spawn(move || fleet.keep_below(limit, &ended)));
            let clients: Vec<_> =
                (0..self.arguments.parallel).map(|_| scope.spawn(client)).collect();
            for client in clients {
                client.join().expect("a client cannot panic");
            }
            drop(all_ended);
            pruner.map_or(Ok(()), |pruner| pruner.join().expect("pruning cannot panic"))
        })?;
        done.into_inner().expect("no holder panics").into_iter().collect()
    }

    fn build(&self, fleet: &Fleet, job: Job, dir: &Path) -> Result<Build> {
        let project = &self.projects[job.project];
        let reference = dir.join(format!("ref-{}-{}", job.project, job.turn));
        let args = [
            "--progress=rawjson".to_owned(),
            format!("--opt=vcs:source={}", project.repository),
            format!("--ref-file={}", reference.display()),
        ];
        let started = Instant::now();
        let built = buildkit::build(fleet.address(), &[], &project.context, &args)?;
        let steps = Steps::read(&built.progress)?;
        ensure!(steps.all > 0, "no step in the progress:\n{}", built.progress);
        let reference = fs::read_to_string(&reference)?.trim().to_owned();
        Ok(Build { job, reference, started, seconds: built.elapsed.as_secs_f64(), steps })
    }
}

/// What a client knows about its build.
struct Build {
    job: Job,
    reference: String,
    started: Instant,
    seconds: f64,
    steps: Steps,
}
