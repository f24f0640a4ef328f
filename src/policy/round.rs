//! One decision: who may be chosen, what all of them run, and a draw by weight.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt as _};

use super::{
    candidate::Candidate,
    candidates::{Candidates, Class, Row},
};

/// Draws before a search of all: where most take builds, the first one is good.
const DRAWS: usize = 16;

/// Which candidates a decision takes into account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eligible {
    /// Those that take builds and are not degraded.
    Fit,
    /// Those that take builds.
    Ready,
    /// All that are not cordoned.
    NotCordoned,
}

impl Eligible {
    /// The best first: the next is asked where the one before has no candidate.
    pub(super) const ORDER: [Self; 3] = [Self::Fit, Self::Ready, Self::NotCordoned];

    fn has(self, candidate: &Candidate) -> bool {
        match self {
            Self::Fit => candidate.is_fit(),
            Self::Ready => candidate.is_ready(),
            Self::NotCordoned => !candidate.is_cordoned(),
        }
    }
}

/// One decision: who may be chosen, and what all of them run.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub(super) candidates: &'a Candidates,
    pub(super) now: Instant,
    pub(super) slow_start: Duration,
    /// Indices, in the caller's order, of the candidates that did not accept.
    pub(super) tried: &'a [usize],
    pub(super) eligible: Eligible,
    /// Builds that each runs at once for a unit of its capacity, if that is limited.
    pub(super) slots: Option<NonZeroU32>,
}

impl Round<'_> {
    /// Whether the candidate at `row` may be chosen.
    pub(super) fn takes(&self, row: Row) -> bool {
        self.is_member(row) && self.has_slot(row)
    }

    /// Whether the candidate at `row` could be chosen but for its builds.
    pub(super) fn is_busy(&self, row: Row) -> bool {
        self.is_member(row) && !self.has_slot(row)
    }

    /// Whether all that could be chosen are busy, and there are any.
    pub(super) fn is_full(&self) -> bool {
        let mut rows = (0..self.candidates.len()).map(Row);
        self.slots.is_some() && rows.any(|row| self.is_busy(row))
    }

    fn is_member(&self, row: Row) -> bool {
        self.eligible.has(self.candidates.at(row))
            && (self.tried.is_empty() || !self.tried.contains(&self.candidates.index(row)))
    }

    /// Whether the candidate at `row` may run one build more.
    pub(super) fn has_slot(&self, row: Row) -> bool {
        self.candidates.at(row).has_slot(self.slots)
    }

    pub(super) fn weight(&self, row: Row) -> u64 {
        self.candidates.at(row).weight(self.now, self.slow_start)
    }

    /// Builds that the fit ones run.
    pub(super) fn total_builds(&self) -> u64 {
        self.candidates.total_builds()
    }

    /// The weights of the fit ones.
    pub(super) fn total_weight(&self) -> u64 {
        self.candidates.total_weight(self.now, self.slow_start)
    }

    /// Any that may be chosen except `not`, each with the chance of its weight.
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
        // Few take builds: each in turn is kept with its share of the weight seen so far.
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

    /// The row in which the sum of the weights passes `at`.
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
