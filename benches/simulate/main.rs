//! Simulates fleets that are too large for a test: 10 to 1000 daemons, 100 000 projects, losses and a roll-out.
//!
//! The policies are the proxy's own; daemons, clients and time are simulated. The same seed gives the same figures.
//! Ends with an error if a target is missed. See benches/README.md.

mod cluster;
mod moves;
mod plot;
mod run;
#[path = "../support/table.rs"]
#[allow(dead_code, reason = "targets across columns are worded here")]
mod table;
mod trace;

use std::{path::PathBuf, process::ExitCode, sync::Mutex, thread};

use anyhow::{Context as _, Result};
use buildkit_lb::policy::{KeyHash, LoadFactor, Policy, PolicyKind};
use clap::Parser;

use moves::Moves;
use run::Outcome;
use table::{Figure, Table};

const PROJECTS: usize = 100_000;

/// The number of daemons, and a number of builds that warms their caches.
const FLEETS: [(usize, usize); 3] = [(10, 100_000), (100, 300_000), (1000, 800_000)];

const FACTORS: [&str; 5] = ["1.1", "1.25", "1.5", "2", "off"];

#[derive(Debug, Parser)]
#[command(about = "Simulates large fleets with the proxy's own policies")]
struct Arguments {
    /// Only the smallest fleet
    #[arg(long)]
    quick: bool,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File for the plot
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One column of a table.
#[derive(Debug, Clone)]
struct Column {
    title: String,
    config: Policy,
}

/// The results of one fleet: an outcome for each column, and the moved keys.
#[derive(Debug)]
struct Fleet {
    daemons: usize,
    outcomes: Vec<Outcome>,
    moves: Moves,
}

const fn figure(name: &'static str, decimals: usize) -> Figure {
    Figure { name, decimals, ratio: false }
}

const FIGURES: &[Figure] = &[
    figure("warm cache, % of builds", 1),
    figure("the same while daemons are lost", 1),
    figure("the same while all restart", 1),
    figure("busiest daemon ÷ mean load", 2),
    figure("repeated builds elsewhere than the last, %", 1),
    figure("the same while daemons are lost", 1),
    figure("builds that find 8 others on their daemon, %", 2),
    figure("mean build, s", 0),
];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let keys: Vec<KeyHash> = (0..PROJECTS)
        .map(|number| KeyHash::new(&format!("git.example/team/project-{number}")))
        .collect();
    let columns = columns()?;
    let sizes = if arguments.quick { &FLEETS[..1] } else { &FLEETS[..] };
    let mut met = true;
    let mut fleets = Vec::new();
    for &(daemons, builds) in sizes {
        let arrivals = trace::arrivals(arguments.seed, daemons, PROJECTS, builds);
        let outcomes = outcomes(&columns, |config| run::run(config, daemons, &keys, &arrivals));
        let fleet = Fleet { daemons, outcomes, moves: moves::measure(daemons, &keys) };
        println!("### {daemons} daemons, {PROJECTS} projects, {builds} builds\n");
        println!("{}", fleet.table(&columns).markdown("policy, load factor"));
        met &= fleet.verdicts(&columns);
        println!();
        fleets.push(fleet);
    }
    if let Some(path) = arguments.plot {
        std::fs::write(&path, plot::svg(&columns, &fleets))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn columns() -> Result<Vec<Column>> {
    let others = [PolicyKind::Random, PolicyKind::LeastBuilds]
        .map(|policy| Column { title: policy.to_string(), config: Policy::default().with(policy) });
    let hashes = FACTORS.iter().map(|factor| {
        let load_factor: LoadFactor = factor.parse().map_err(anyhow::Error::msg)?;
        Ok(Column {
            title: (*factor).to_owned(),
            config: Policy { load_factor, ..Policy::default() },
        })
    });
    others.into_iter().map(Ok).chain(hashes).collect()
}

/// Runs all columns, two at a time.
fn outcomes(columns: &[Column], run: impl Fn(Policy) -> Outcome + Sync) -> Vec<Outcome> {
    let outcomes = Mutex::new(vec![Outcome::default(); columns.len()]);
    let next = Mutex::new(0..columns.len());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(column) = next.lock().expect("no holder panics").next() else {
                        return;
                    };
                    let outcome = run(columns[column].config);
                    outcomes.lock().expect("no holder panics")[column] = outcome;
                }
            });
        }
    });
    outcomes.into_inner().expect("no holder panics")
}

impl Fleet {
    fn table(&self, columns: &[Column]) -> Table {
        let names = columns.iter().map(|column| (column.title.clone(), column.title.clone()));
        let mut table = Table::new(FIGURES, names);
        for (column, outcome) in self.outcomes.iter().enumerate() {
            let Outcome { steady, losses, roll_out } = outcome;
            let percent = |share: f64| 100.0 * share;
            table.add(
                column,
                vec![
                    percent(steady.hits()),
                    percent(losses.hits()),
                    percent(roll_out.hits()),
                    steady.spread(),
                    percent(steady.moved()),
                    percent(losses.moved()),
                    percent(steady.above_slots()),
                    steady.seconds(),
                ],
            );
        }
        table
    }

    /// Prints each target and whether it was met. Returns whether all were.
    fn verdicts(&self, columns: &[Column]) -> bool {
        let outcome = |title: &str| {
            let at = columns.iter().position(|column| column.title == title);
            at.map(|at| self.outcomes[at]).unwrap_or_default()
        };
        let (bounded, unbounded) = (outcome("1.25").steady, outcome("off").steady);
        let hits = bounded.hits() / unbounded.hits();
        let Moves { mean, most, needless } = self.moves;
        let one = 1.0 / self.daemons as f64;
        let verdicts = [
            (
                bounded.above_bound() == 0,
                format!(
                    "factor 1.25, builds placed above 1.25 × mean + 1: {}",
                    bounded.above_bound()
                ),
            ),
            (hits >= 0.9, format!("factor 1.25, hits ÷ those without a bound: {hits:.3}")),
            (
                mean <= 1.1 * one && needless == 0,
                format!(
                    "one daemon lost moves {:.3} of a daemon's share of the keys (worst {:.3}), \
                     of others' keys {needless}",
                    mean / one,
                    most / one
                ),
            ),
        ];
        for (met, words) in &verdicts {
            println!("- {words}: {}", if *met { "met" } else { "missed" });
        }
        verdicts.iter().all(|(met, _)| *met)
    }
}
