//! One decision: which candidates may be chosen, what they run, and a draw by weight.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt as _};

use super::{
    candidate::Candidate,
    candidates::{Candidates, Class, Row},
};

/// How many draws are made before all candidates are searched. If most candidates take builds, the first draw succeeds.
const DRAWS: usize = 16;

/// Which candidates a decision takes into account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eligible {
    /// The candidates that take builds and are not degraded.
    Fit,
    /// The candidates that take builds.
    Ready,
    /// All candidates that are not cordoned.
    NotCordoned,
}

impl Eligible {
    /// The groups from best to worst. A group is used if all better ones are empty.
    pub(super) const ORDER: [Self; 3] = [Self::Fit, Self::Ready, Self::NotCordoned];

    fn has(self, candidate: &Candidate) -> bool {
        match self {
            Self::Fit => candidate.is_fit(),
            Self::Ready => candidate.is_ready(),
            Self::NotCordoned => !candidate.is_cordoned(),
        }
    }
}

/// One decision: which candidates may be chosen, and what they run.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub(super) candidates: &'a Candidates,
    pub(super) now: Instant,
    pub(super) slow_start: Duration,
    /// The candidates that did not accept, as indices in the caller's order.
    pub(super) tried: &'a [usize],
    pub(super) eligible: Eligible,
    /// How many builds a candidate runs at once for each unit of its capacity; `None` without a limit.
    pub(super) slots: Option<NonZeroU32>,
}

impl Round<'_> {
    /// Whether the candidate in `row` may be chosen.
    pub(super) fn takes(&self, row: Row) -> bool {
        self.is_member(row) && self.has_slot(row)
    }

    /// Whether only missing slots keep the candidate in `row` from being chosen.
    pub(super) fn is_busy(&self, row: Row) -> bool {
        self.is_member(row) && !self.has_slot(row)
    }

    /// Whether there are candidates, and all of them are busy.
    pub(super) fn is_full(&self) -> bool {
        let mut rows = (0..self.candidates.len()).map(Row);
        self.slots.is_some() && rows.any(|row| self.is_busy(row))
    }

    fn is_member(&self, row: Row) -> bool {
        self.eligible.has(self.candidates.at(row))
            && (self.tried.is_empty() || !self.tried.contains(&self.candidates.index(row)))
    }

    /// Whether the candidate in `row` may run one more build.
    pub(super) fn has_slot(&self, row: Row) -> bool {
        self.candidates.at(row).has_slot(self.slots)
    }

    pub(super) fn weight(&self, row: Row) -> u64 {
        self.candidates.at(row).weight(self.now, self.slow_start)
    }

    /// How many builds the fit candidates run.
    pub(super) fn total_builds(&self) -> u64 {
        self.candidates.total_builds()
    }

    /// The weights of the fit candidates.
    pub(super) fn total_weight(&self) -> u64 {
        self.candidates.total_weight(self.now, self.slow_start)
    }

    /// Draws a candidate that may be chosen, other than `not`. The chance of each is proportional to its weight.
    pub(super) fn draw(
        &self,
        not: Option<Row>,
        weigh: impl Fn(&Class) -> u64,
        rng: &mut impl Rng,
    ) -> Option<Row> {
        let good = |row: &Row| Some(*row) != not && self.takes(*row);
        let total = self.candidates.classes().iter().map(&weigh).sum::<u64>();
        if total == 0 {
            return None;
        }
        for _ in 0..DRAWS {
            let row = self.nth(rng.random_range(0..total), &weigh);
            if good(&row) {
                return Some(row);
            }
        }
        // Few candidates take builds. Each one in turn replaces the last with a chance of its weight over the weights
        // so far.
        let mut seen = 0;
        let mut kept = None;
        for class in self.candidates.classes() {
            let weight = weigh(class) / class.range.len() as u64;
            for row in class.rows().filter(good) {
                seen += weight;
                if rng.random_range(0..seen) < weight {
                    kept = Some(row);
                }
            }
        }
        kept
    }

    /// The row in which the sum of the weights exceeds `at`.
    fn nth(&self, mut at: u64, weigh: impl Fn(&Class) -> u64) -> Row {
        for class in self.candidates.classes() {
            let whole = weigh(class);
            if at < whole {
                let each = (whole / class.range.len() as u64).max(1);
                let offset = usize::try_from(at / each).unwrap_or_default();
                return Row(class.range.start + offset);
            }
            at -= whole;
        }
        Row(0)
    }
}
