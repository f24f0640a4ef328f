//! The figures of all rounds as a Markdown table, and the list of goals.

use std::fmt::Write as _;

/// One row: what is measured, and how its cells are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
    /// A second row gives the ratio to the reference candidate, round by round.
    pub(crate) ratio: bool,
}

/// The goal for a figure of buildkit-lb.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    pub(crate) words: &'static str,
    pub(crate) figure: usize,
    pub(crate) limit: Limit,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "each benchmark uses some")]
pub(crate) enum Limit {
    /// At most this, in the figure's unit.
    AtMost(f64),
    /// At most this times the direct connection.
    AtMostDirectTimes(f64),
    /// At most the lowest of these candidates.
    Lowest(&'static [&'static str]),
    /// At least this, in the figure's unit.
    AtLeast(f64),
    /// At most this times a candidate.
    AtMostTimes(f64, &'static str),
}

/// The samples of one workload.
#[derive(Debug)]
pub(crate) struct Table {
    figures: &'static [Figure],
    columns: Vec<Column>,
    /// The candidate to which the ratios refer.
    base: &'static str,
}

#[derive(Debug)]
struct Column {
    name: String,
    title: String,
    /// The values of all figures for each round.
    rounds: Vec<Vec<f64>>,
}

impl Table {
    pub(crate) fn new(
        figures: &'static [Figure],
        candidates: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let columns = candidates
            .into_iter()
            .map(|(name, title)| Column { name, title, rounds: Vec::new() })
            .collect();
        Self { figures, columns, base: "direct" }
    }

    /// Takes the ratios to this candidate instead of the direct connection.
    #[allow(dead_code, reason = "most benchmarks have a direct way")]
    pub(crate) fn beside(self, base: &'static str) -> Self {
        Self { base, ..self }
    }

    /// Adds one round of one candidate: a value for each figure.
    pub(crate) fn add(&mut self, candidate: usize, values: Vec<f64>) {
        self.columns[candidate].rounds.push(values);
    }

    fn median(&self, column: usize, figure: usize) -> f64 {
        median(self.columns[column].rounds.iter().map(|round| round[figure]))
    }

    /// The median of the ratios to the reference candidate, if that takes part.
    fn ratio(&self, column: usize, figure: usize) -> Option<f64> {
        let base = &self.columns[self.position(self.base)?].rounds;
        let own = &self.columns[column].rounds;
        Some(median(own.iter().zip(base).map(|(own, base)| own[figure] / base[figure])))
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// The first two lines of a table. `corner` describes its cells.
    fn head(&self, corner: &str) -> String {
        let mut text = format!("| {corner} |");
        for column in &self.columns {
            let _ = write!(text, " {} |", column.title);
        }
        let _ = write!(text, "\n|---|{}", "---|".repeat(self.columns.len()));
        text
    }

    /// The medians of `figure`, divided by those of `base`, a table of the same candidates. `name` is that of the row.
    #[allow(dead_code, reason = "not every benchmark varies its setup")]
    pub(crate) fn divided(&self, base: &Self, figure: usize, name: &str) -> String {
        let mut text = self.head("ratio of medians");
        let _ = write!(text, "\n| {name} |");
        for column in 0..self.columns.len() {
            let ratio = self.median(column, figure) / base.median(column, figure);
            let _ = write!(text, " {ratio:.2} |");
        }
        text.push('\n');
        text
    }

    /// The table. `corner` describes its cells.
    pub(crate) fn markdown(&self, corner: &str) -> String {
        let mut text = self.head(corner);
        for (index, figure) in self.figures.iter().enumerate() {
            let _ = write!(text, "\n| {} |", figure.name);
            for column in 0..self.columns.len() {
                let _ = write!(text, " {:.*} |", figure.decimals, self.median(column, index));
            }
            if figure.ratio && self.position(self.base).is_some() {
                let _ = write!(text, "\n| ÷ {} |", self.base);
                for column in 0..self.columns.len() {
                    let ratio = self.ratio(column, index).unwrap_or(f64::NAN);
                    let _ = write!(text, " {ratio:.2} |");
                }
            }
        }
        text.push('\n');
        text
    }

    /// Says of each goal whether `name` meets it. Goals whose rivals took no part are left out.
    pub(crate) fn verdicts(&self, name: &str, goals: &[Goal]) -> String {
        let mut text = String::new();
        let Some(own) = self.position(name) else { return text };
        for goal in goals {
            if let Some((value, limit)) = self.compare(own, goal) {
                let met = match goal.limit {
                    Limit::AtLeast(_) => value >= limit,
                    _ => value <= limit,
                };
                let verdict = if met { "met" } else { "missed" };
                let _ =
                    writeln!(text, "- {}: {value:.2} against {limit:.2}: {verdict}", goal.words);
            }
        }
        text
    }

    fn compare(&self, own: usize, goal: &Goal) -> Option<(f64, f64)> {
        match goal.limit {
            Limit::AtMost(limit) | Limit::AtLeast(limit) => {
                Some((self.median(own, goal.figure), limit))
            }
            Limit::AtMostTimes(times, rival) => {
                let rival = self.median(self.position(rival)?, goal.figure);
                Some((self.median(own, goal.figure), times * rival))
            }
            Limit::AtMostDirectTimes(limit) => Some((self.ratio(own, goal.figure)?, limit)),
            Limit::Lowest(rivals) => {
                let lowest = rivals
                    .iter()
                    .filter_map(|rival| self.position(rival))
                    .map(|rival| self.comparable(rival, goal.figure))
                    .min_by(f64::total_cmp)?;
                Some((self.comparable(own, goal.figure), lowest))
            }
        }
    }

    /// The ratio where there is one, because it does not drift with the load of the machine.
    fn comparable(&self, column: usize, figure: usize) -> f64 {
        let ratio = self.figures[figure].ratio.then(|| self.ratio(column, figure)).flatten();
        ratio.unwrap_or_else(|| self.median(column, figure))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}
