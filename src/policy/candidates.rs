//! A table of all backends of a fleet, as the policies see them.
//!
//! A decision reads the hashes of all backends and little else, so the hashes are stored side by side.

use std::{
    num::NonZeroU32,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use super::candidate::{Candidate, FULL_SHARE, Totals, tag};

/// The index of a candidate in the table [`Candidates`], which is sorted by capacity.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row(pub(super) usize);

/// The candidates of one capacity. They rank by their hashes alone.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) capacity: u32,
    pub(super) range: Range<usize>,
}

impl Class {
    pub(super) fn has(&self, row: Row) -> bool {
        self.range.contains(&row.0)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = Row> {
        self.range.clone().map(Row)
    }
}

/// All candidates of one fleet snapshot, by class.
#[derive(Debug, Default)]
pub struct Candidates {
    hashes: Box<[u64]>,
    candidates: Box<[Arc<Candidate>]>,
    /// The index of each candidate in the caller's order.
    index: Box<[usize]>,
    classes: Box<[Class]>,
    /// When the last candidate joined a running fleet.
    last_joined: Option<Instant>,
    totals: Arc<Totals>,
}

impl Candidates {
    /// Makes the table for candidates that share `totals`. A choice is an index in this order.
    pub fn new(candidates: Vec<Arc<Candidate>>, totals: &Arc<Totals>) -> Self {
        let mut order: Vec<(usize, Arc<Candidate>)> = candidates.into_iter().enumerate().collect();
        order.sort_by_key(|(index, candidate)| (candidate.capacity(), *index));
        let mut classes: Vec<Class> = Vec::new();
        for (index, (_, candidate)) in order.iter().enumerate() {
            match classes.last_mut() {
                Some(class) if class.capacity == candidate.capacity() => class.range.end += 1,
                _ => {
                    classes.push(Class { capacity: candidate.capacity(), range: index..index + 1 });
                }
            }
        }
        Self {
            hashes: order.iter().map(|(_, candidate)| candidate.hash()).collect(),
            last_joined: order.iter().filter_map(|(_, candidate)| candidate.joined()).max(),
            index: order.iter().map(|(index, _)| *index).collect(),
            candidates: order.into_iter().map(|(_, candidate)| candidate).collect(),
            classes: classes.into(),
            totals: Arc::clone(totals),
        }
    }

    /// How many candidates there are.
    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// Whether there are no candidates.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// Whether any candidate takes builds and has a free slot, with `slots` builds for each unit of capacity.
    pub fn has_free(&self, slots: Option<NonZeroU32>) -> bool {
        self.candidates.iter().any(|candidate| candidate.is_ready() && candidate.has_slot(slots))
    }

    /// How many slots of the ready candidates are taken, and how many they have, with `slots` for each unit of
    /// capacity.
    pub fn taken(&self, slots: NonZeroU32) -> (u64, u64) {
        let ready = self.candidates.iter().filter(|candidate| candidate.is_ready());
        ready.fold((0, 0), |(taken, all), candidate| {
            let slots = candidate.slots(slots);
            (taken + slots.min(candidate.builds().into()), all + slots)
        })
    }

    /// How many builds the fit candidates run.
    pub(super) fn total_builds(&self) -> u64 {
        self.totals.builds()
    }

    /// The weights of the fit candidates.
    pub(super) fn total_weight(&self, now: Instant, slow_start: Duration) -> u64 {
        let age = self.last_joined.map(|at| now.saturating_duration_since(at));
        let starting = age.is_some_and(|age| age < slow_start);
        if !starting {
            return self.totals.capacity() * FULL_SHARE;
        }
        let fit = self.candidates.iter().filter(|candidate| candidate.is_fit());
        fit.map(|candidate| candidate.weight(now, slow_start)).sum()
    }

    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The index of the candidate in `row`, in the caller's order.
    pub(super) fn index(&self, row: Row) -> usize {
        self.index[row.0]
    }

    pub(super) fn hash(&self, row: Row) -> u64 {
        self.hashes[row.0]
    }

    pub(super) fn at(&self, row: Row) -> &Candidate {
        &self.candidates[row.0]
    }

    pub(super) fn with_tag(&self, wanted: u32) -> Option<Row> {
        self.hashes.iter().position(|hash| tag(*hash) == wanted).map(Row)
    }
}
