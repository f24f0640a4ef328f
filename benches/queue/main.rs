//! What it is to wait for a slot: simulated, in the proxy's own order, and measured with the proxy itself.
//!
//! See benches/README.md.

#![allow(clippy::disallowed_methods, reason = "no drain waits for a benchmark")]

#[path = "../simulate/cluster.rs"]
#[allow(dead_code, reason = "no daemon leaves here")]
mod cluster;
#[path = "../../tests/support/fake_daemon.rs"]
#[allow(dead_code, reason = "tests use all of it")]
mod fake_daemon;
#[path = "../support/machine.rs"]
#[allow(dead_code, reason = "only what is run is told")]
mod machine;
mod measured;
#[path = "../support/process.rs"]
mod process;
#[path = "../../tests/support/raw_client.rs"]
#[allow(dead_code, reason = "tests use all of it")]
mod raw_client;
mod share;
mod simulated;
#[path = "../support/table.rs"]
#[allow(dead_code, reason = "not every kind of goal is used")]
mod table;
#[allow(dead_code, reason = "tests use all of it")]
#[path = "../../tests/support/tools.rs"]
mod tools;
#[path = "../simulate/trace.rs"]
mod trace;
#[path = "../peers/usage.rs"]
mod usage;

use std::time::Duration;

use anyhow::Result;
use buildkit_lb::policy::{Policy, PolicyKind};
use clap::Parser;

use simulated::Settings;
use table::{Figure, Goal, Limit, Table};

/// Builds that arrive as a share of those that all slots could run, if four in five found their cache.
const LOADS: [f64; 3] = [0.4, 0.55, 0.7];

/// The default of `affinity-wait`.
const AFFINITY_WAIT: Duration = Duration::from_secs(10);

/// The column of what the proxy does by default.
const DEFAULT: &str = "consistent-hash";

#[derive(Debug, Parser)]
#[command(about = "Measures how builds wait for a slot")]
struct Arguments {
    /// Only a small simulation, and one round of each measurement
    #[arg(long)]
    quick: bool,
    /// Determines all that is random in the simulation
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const fn figure(name: &'static str, decimals: usize, ratio: bool) -> Figure {
    Figure { name, decimals, ratio }
}

const SIMULATED: &[Figure] = &[
    figure("builds that wait, %", 1, false),
    figure("wait of a build, mean, s", 0, true),
    figure("the same, p95, s", 0, false),
    figure("wait of a build of the client that sends many at once, p95, s", 0, false),
    figure("Jain's index of what the waiting clients run", 2, false),
    figure("builds that find their cache, %", 1, false),
    figure("mean build, s", 0, true),
];

const MEASURED: &[Figure] = &[
    figure("private memory of the proxy, KiB a build", 1, true),
    figure("free slot to granted build, p50, ms", 2, true),
    figure("the same, p99, ms", 2, true),
    figure("Jain's index of the builds that were granted", 2, false),
];

const GOALS: &[Goal] = &[Goal {
    words: "1 000 builds wait: free slot to granted build, p99, ms",
    figure: 2,
    limit: Limit::AtMost(5.0),
}];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!("{}\n", machine::line());
    for load in LOADS {
        simulate(load, &arguments);
    }
    measure(&arguments)
}

/// One column of the simulation: its title, and how builds wait.
fn columns() -> Vec<(&'static str, Settings)> {
    let hash = Policy::default();
    let settings = |policy, affinity_wait| Settings { policy, affinity_wait, turns: true };
    let default = settings(hash, AFFINITY_WAIT);
    vec![
        ("random", settings(hash.with(PolicyKind::Random), AFFINITY_WAIT)),
        ("least-builds", settings(hash.with(PolicyKind::LeastBuilds), AFFINITY_WAIT)),
        ("consistent-hash, no affinity-wait", settings(hash, Duration::ZERO)),
        (DEFAULT, default),
        ("consistent-hash, first come first served", Settings { turns: false, ..default }),
    ]
}

fn simulate(load: f64, arguments: &Arguments) {
    let columns = columns();
    let work = simulated::Work::new(arguments.seed, load, arguments.quick);
    println!("### Simulated: {}\n", work.title());
    let names = columns.iter().map(|(title, _)| ((*title).to_owned(), (*title).to_owned()));
    let mut table = Table::new(SIMULATED, names).beside("random");
    for (column, (_, settings)) in columns.iter().enumerate() {
        table.add(column, simulated::run(*settings, &work).figures());
    }
    println!("{}", table.markdown("policy"));
}

fn measure(arguments: &Arguments) -> Result<()> {
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let kinds = measured::KINDS;
    let names = kinds.iter().map(|kind| (kind.title.to_owned(), kind.title.to_owned()));
    let mut table = Table::new(MEASURED, names).beside(kinds[0].title);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for _ in 0..rounds {
        for (column, kind) in kinds.iter().enumerate() {
            table.add(column, runtime.block_on(measured::run(kind))?.figures());
        }
    }
    println!("### Measured: the proxy before one daemon\n");
    println!("{}", table.markdown("builds"));
    println!("{}", table.verdicts(kinds[kinds.len() - 1].title, GOALS));
    Ok(())
}
