//! How builds are placed: the shares of the last hour as plots, and the keys of the builds on the page.

use std::collections::HashMap;

use maud::{Markup, html};

use super::{
    fleet::percent,
    table,
    words::{count, foreign},
};
use crate::snapshot::{Build, Pool, Snapshot};

/// The plots, each with its class, its words and the outcomes that it counts.
const PLOTS: [(&str, &str, &[&str]); 4] = [
    ("home", "at home", &["home"]),
    ("warm", "warm", &["warm"]),
    ("spill", "spilled", &["spill", "failover"]),
    ("other", "without key", &["balanced", "pinned"]),
];

/// The minutes of one bar. Fewer would show chance, more would hide when something changed.
const MINUTES_OF_BAR: usize = 5;

/// The most keys in the table.
const MAX_KEYS: usize = 20;

/// How the builds of the last hour were placed.
pub(super) fn placement(snapshot: &Snapshot) -> Markup {
    html! {
        section.card id="placement" aria-labelledby="placement-title" {
            h2 id="placement-title" { "Placement in the last hour" }
            @for pool in &snapshot.pools {
                div.pad data-key={ "placement " (pool.name) } { (plots(pool, snapshot.pools.len() > 1)) }
            }
        }
    }
}

fn plots(pool: &Pool, several: bool) -> Markup {
    let all = bars(pool, |_outcome| true);
    let total: u32 = all.iter().sum();
    html! {
        h3 {
            @if several { (foreign(&pool.name)) ": " }
            (foreign(&pool.policy)) ", " (count(total as usize, "build"))
        }
        @if total > 0 {
            div.plots {
                @for (class, words, outcomes) in PLOTS {
                    (plot(class, words, &bars(pool, |outcome| outcomes.contains(&outcome)), &all))
                }
            }
        }
    }
}

/// The builds with an outcome that is `meant`, for each bar.
fn bars(pool: &Pool, meant: impl Fn(&str) -> bool) -> Vec<u32> {
    let meant: Vec<_> =
        pool.placements.iter().filter(|(outcome, _)| meant(outcome)).map(|(_, of)| of).collect();
    let minutes = meant.iter().map(|minutes| minutes.len()).max().unwrap_or_default();
    let minute = |at: usize| meant.iter().filter_map(|minutes| minutes.get(at)).sum::<u32>();
    let bar = |at: usize| (at..at + MINUTES_OF_BAR).map(minute).sum();
    (0..minutes).step_by(MINUTES_OF_BAR).map(bar).collect()
}

/// The share of `part` in `all` over time, as bars. A pale bar has builds, and none of them counts.
fn plot(class: &str, words: &str, part: &[u32], all: &[u32]) -> Markup {
    const HEIGHT: u32 = 36;
    let (sum, total) = (part.iter().sum::<u32>(), all.iter().sum::<u32>());
    let share = percent(sum as usize, total as usize).unwrap_or_default();
    let width = all.len() * 10;
    let label = format!("{share} % of {total} builds in the last hour were {words}");
    html! {
        figure {
            figcaption { strong { (share) " %" } " " (words) }
            svg.plot viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
                @for (at, all) in all.iter().enumerate().filter(|(_, all)| **all > 0) {
                    @let height = (part.get(at).copied().unwrap_or_default() * HEIGHT).div_ceil(*all).min(HEIGHT);
                    rect.back x=(at * 10) width="8" height=(HEIGHT) {}
                    rect class=(class) x=(at * 10) y=(HEIGHT - height) width="8" height=(height) {}
                }
            }
        }
    }
}

/// The builds of one key on the page.
#[derive(Debug, Default)]
struct OfKey<'a> {
    builds: usize,
    warm: usize,
    known: usize,
    spilled: usize,
    /// The backend of the latest build.
    latest: &'a str,
}

/// The keys of the builds that run or ended lately, the most frequent first.
pub(super) fn keys(snapshot: &Snapshot) -> Markup {
    let mut keys: HashMap<(&str, &str), OfKey<'_>> = HashMap::new();
    let running = snapshot.builds.iter().rev().filter(|build| !build.internal);
    let recent = snapshot.recent.iter().map(|ended| &ended.build);
    for build in running.chain(recent).filter(|build| !build.key.is_empty()) {
        keys.entry((&build.pool, &build.key)).or_default().add(build);
    }
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.sort_by(|(a, of_a), (b, of_b)| (of_b.builds, a).cmp(&(of_a.builds, b)));
    let columns = vec![
        ("Key", ""),
        ("Latest backend", ""),
        ("Builds", "number"),
        ("Warm", "number"),
        ("Spilled", "number"),
    ];
    let rows: Vec<_> = keys.iter().take(MAX_KEYS).map(|(key, of)| row(*key, of)).collect();
    table::card(("keys", "Keys of recent builds"), &columns, &rows, "No recent build has a key.")
}

impl<'a> OfKey<'a> {
    /// Counts `build`. The latest build comes first.
    fn add(&mut self, build: &'a Build) {
        if self.builds == 0 {
            self.latest = &build.backend;
        }
        self.builds += 1;
        self.known += usize::from(build.warm.is_some());
        self.warm += usize::from(build.warm == Some(true));
        self.spilled += usize::from(build.outcome == "spill");
    }
}

fn row((pool, key): (&str, &str), of: &OfKey<'_>) -> Markup {
    html! {
        tr data-key={ "key " (pool) " " (key) } {
            th.text scope="row" { (foreign(key)) }
            td { (foreign(of.latest)) }
            td.number { (of.builds) }
            td.number {
                @match percent(of.warm, of.known) {
                    Some(percent) => { (percent) " %" }
                    None => "–",
                }
            }
            td.number { (of.spilled) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(placements: &[(&str, &[(usize, u32)])]) -> Pool {
        let minutes = |counts: &[(usize, u32)]| {
            let mut minutes = vec![0; 60];
            for (at, count) in counts {
                minutes[*at] = *count;
            }
            minutes
        };
        let placements =
            placements.iter().map(|(outcome, counts)| ((*outcome).to_owned(), minutes(counts)));
        Pool { placements: placements.collect(), ..Pool::default() }
    }

    #[test]
    fn a_plot_has_the_share_of_each_five_minutes() {
        let pool = pool(&[("home", &[(0, 1), (4, 2), (59, 1)]), ("spill", &[(59, 3)])]);
        let all = bars(&pool, |_| true);
        assert_eq!((all.len(), all[0], all[11]), (12, 3, 4));
        let home = bars(&pool, |outcome| outcome == "home");
        let plot = plot("home", "at home", &home, &all).into_string();
        assert!(plot.contains("57 % of 7 builds"), "{plot}");
        assert!(
            plot.contains(r#"<rect class="home" x="0" y="0" width="8" height="36">"#),
            "{plot}"
        );
        assert!(
            plot.contains(r#"<rect class="home" x="110" y="27" width="8" height="9">"#),
            "{plot}"
        );
    }

    #[test]
    fn an_outcome_that_never_occurred_has_an_empty_plot() {
        let pool = pool(&[("home", &[(3, 1)])]);
        let plot =
            plot("warm", "warm", &bars(&pool, |outcome| outcome == "warm"), &bars(&pool, |_| true));
        assert!(plot.into_string().contains("0 % of 1 builds"));
    }
}
