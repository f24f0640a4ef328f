//! The backends as the policies see them: plain facts, and the sums over those that take builds.
//!
//! A decision reads the hashes of all of them and little else, so the hashes lie side by side and the
//! sums are kept, not made.

use std::{
    num::NonZeroU32,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rand::{Rng, RngExt as _};
use twox_hash::XxHash3_64;

/// A backend of capacity 1 that has started has this weight: fine enough for each step of a slow start.
pub(super) const FULL_SHARE: u64 = 1024;

/// What a slow start begins with: a tenth, or nothing would ever warm the new backend.
const FIRST_SHARE: u64 = FULL_SHARE / 10;

/// Draws before a search of all: where most take builds, the first one is good.
const DRAWS: usize = 16;

const CORDONED: u8 = 1;
const EJECTED: u8 = 2;
const DEPARTED: u8 = 4;
const UNREADY: u8 = 8;
const DEGRADED: u8 = 16;

/// What keeps a backend from new builds; the default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// It finishes its builds and takes no new one, even where no backend is ready.
    pub cordoned: bool,
    /// A connection to it failed and no probe has passed since.
    pub ejected: bool,
    /// It is to be given no builds where there are others.
    pub unready: bool,
    /// It fails builds for reasons of its own: it takes builds only where no other backend does.
    pub degraded: bool,
    /// It is out of the fleet: the builds it still runs count for nobody.
    pub departed: bool,
}

impl Status {
    fn bits(self) -> u8 {
        let bit = |bit, holds| if holds { bit } else { 0 };
        bit(CORDONED, self.cordoned)
            | bit(EJECTED, self.ejected)
            | bit(UNREADY, self.unready)
            | bit(DEGRADED, self.degraded)
            | bit(DEPARTED, self.departed)
    }
}

/// One backend: what of it matters to a policy. Changes keep the [`Totals`] right.
#[derive(Debug)]
pub struct Candidate {
    hash: u64,
    capacity: AtomicU32,
    builds: AtomicU32,
    /// The bits of its [`Status`].
    status: AtomicU8,
    joined: Option<Instant>,
    totals: Arc<Totals>,
}

/// Builds and capacity of all candidates of a fleet that are fit for new builds.
#[derive(Debug, Default)]
pub struct Totals {
    change: Mutex<()>,
    builds: AtomicU64,
    capacity: AtomicU64,
}

impl Candidate {
    /// A candidate that takes builds. With `joined`, a slow start begins then.
    pub fn new(name: &str, capacity: u32, joined: Option<Instant>, totals: &Arc<Totals>) -> Self {
        let candidate = Self {
            hash: XxHash3_64::oneshot(name.as_bytes()),
            capacity: 0.into(),
            builds: 0.into(),
            status: 0.into(),
            joined,
            totals: Arc::clone(totals),
        };
        candidate.set_capacity(capacity);
        candidate
    }

    /// Builds that run on it.
    pub fn builds(&self) -> u32 {
        self.builds.load(Ordering::Relaxed)
    }

    /// Its size against the others'.
    pub fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Whether it takes new builds.
    pub fn is_ready(&self) -> bool {
        self.status.load(Ordering::Relaxed) & !DEGRADED == 0
    }

    /// Whether it takes new builds and is not degraded.
    pub fn is_fit(&self) -> bool {
        self.status.load(Ordering::Relaxed) == 0
    }

    /// Whether it fails builds for reasons of its own.
    pub fn is_degraded(&self) -> bool {
        self.status.load(Ordering::Relaxed) & DEGRADED != 0
    }

    /// Whether it finishes its builds and takes no new one.
    pub fn is_cordoned(&self) -> bool {
        self.status.load(Ordering::Relaxed) & CORDONED != 0
    }

    /// Whether it may run one build more, if it runs `slots` at once for a unit of its capacity.
    pub(super) fn has_slot(&self, slots: Option<NonZeroU32>) -> bool {
        slots.is_none_or(|slots| u64::from(self.builds()) < self.slots(slots))
    }

    /// Builds that it runs at once, with so many for a unit of its capacity.
    fn slots(&self, each: NonZeroU32) -> u64 {
        u64::from(each.get()) * u64::from(self.capacity())
    }

    /// Counts one more build.
    pub fn start_build(&self) {
        self.change(|| {
            self.builds.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Counts one build less.
    pub fn end_build(&self) {
        self.change(|| {
            self.builds.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Sets its size; the ranking follows with the next [`Candidates::new`].
    pub fn set_capacity(&self, capacity: u32) {
        self.change(|| self.capacity.store(capacity.max(1), Ordering::Relaxed));
    }

    /// Sets what keeps it from new builds.
    pub fn set_status(&self, status: Status) {
        self.change(|| self.status.store(status.bits(), Ordering::Relaxed));
    }

    /// Whether a connection to it failed and no probe has succeeded since.
    pub fn is_ejected(&self) -> bool {
        self.status.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// What the consistent hash knows it by, cut to what a memory of many keys can hold.
    pub(super) fn tag(&self) -> u32 {
        tag(self.hash)
    }

    fn change(&self, apply: impl FnOnce()) {
        let _one_at_a_time = self.totals.change.lock();
        let before = self.counted();
        apply();
        let after = self.counted();
        let add = |sum: &AtomicU64, before: u32, after: u32| {
            sum.fetch_add(u64::from(after).wrapping_sub(before.into()), Ordering::Relaxed);
        };
        add(&self.totals.builds, before.0, after.0);
        add(&self.totals.capacity, before.1, after.1);
    }

    fn counted(&self) -> (u32, u32) {
        if self.is_fit() { (self.builds(), self.capacity()) } else { (0, 0) }
    }

    /// Capacity times the share of it that a slow start allows at `now`.
    pub(super) fn weight(&self, now: Instant, slow_start: Duration) -> u64 {
        u64::from(self.capacity()) * self.share(now, slow_start)
    }

    fn share(&self, now: Instant, slow_start: Duration) -> u64 {
        let Some(joined) = self.joined else { return FULL_SHARE };
        let (up, whole) =
            (now.saturating_duration_since(joined).as_millis(), slow_start.as_millis());
        if up >= whole {
            return FULL_SHARE;
        }
        u64::try_from(up * u128::from(FULL_SHARE) / whole)
            .map_or(FULL_SHARE, |share| share.max(FIRST_SHARE))
    }
}

pub(super) fn tag(hash: u64) -> u32 {
    // The low half: any 32 bits of a hash are as good as any other.
    #[allow(clippy::cast_possible_truncation)]
    let tag = hash as u32;
    tag
}

/// The index of a candidate in the table [`Candidates`], which is sorted by capacity.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row(pub(super) usize);

/// Candidates of the same capacity: they rank by hash alone.
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
    /// When the last of them joined a running fleet.
    last_joined: Option<Instant>,
    totals: Arc<Totals>,
}

impl Candidates {
    /// Candidates that share `totals`; a choice names their index in this order.
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
            hashes: order.iter().map(|(_, candidate)| candidate.hash).collect(),
            last_joined: order.iter().filter_map(|(_, candidate)| candidate.joined).max(),
            index: order.iter().map(|(index, _)| *index).collect(),
            candidates: order.into_iter().map(|(_, candidate)| candidate).collect(),
            classes: classes.into(),
            totals: Arc::clone(totals),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.candidates.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// Whether one takes builds, and has a free slot if each runs `slots` builds for a unit of its capacity.
    pub fn has_free(&self, slots: Option<NonZeroU32>) -> bool {
        self.candidates.iter().any(|candidate| candidate.is_ready() && candidate.has_slot(slots))
    }

    /// Of those that take builds, with `slots` for a unit of capacity: slots that are taken, and all.
    pub fn taken(&self, slots: NonZeroU32) -> (u64, u64) {
        let ready = self.candidates.iter().filter(|candidate| candidate.is_ready());
        ready.fold((0, 0), |(taken, all), candidate| {
            let slots = candidate.slots(slots);
            (taken + slots.min(candidate.builds().into()), all + slots)
        })
    }

    pub(super) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    pub(super) fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The index in the caller's order of the candidate in `row`.
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
        self.candidates.totals.builds.load(Ordering::Relaxed)
    }

    /// The weights of the fit ones.
    pub(super) fn total_weight(&self) -> u64 {
        let candidates = self.candidates;
        let age = candidates.last_joined.map(|at| self.now.saturating_duration_since(at));
        let starting = age.is_some_and(|age| age < self.slow_start);
        if !starting {
            return candidates.totals.capacity.load(Ordering::Relaxed) * FULL_SHARE;
        }
        let fit = candidates.candidates.iter().filter(|candidate| candidate.is_fit());
        fit.map(|candidate| candidate.weight(self.now, self.slow_start)).sum()
    }

    /// Any that may be chosen except `not`, each with the chance of its weight.
    pub(super) fn draw(
        &self,
        not: Option<Row>,
        weigh: impl Fn(&Class) -> u64,
        rng: &mut impl Rng,
    ) -> Option<Row> {
        let good = |row: &Row| Some(*row) != not && self.takes(*row);
        let total = self.candidates.classes.iter().map(&weigh).sum::<u64>();
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
        for class in &self.candidates.classes {
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
        for class in &self.candidates.classes {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_follow_every_change() {
        let totals = Arc::new(Totals::default());
        let sums =
            || (totals.builds.load(Ordering::Relaxed), totals.capacity.load(Ordering::Relaxed));
        let [a, b] = ["a", "b"].map(|name| Candidate::new(name, 2, None, &totals));
        a.start_build();
        a.start_build();
        b.start_build();
        assert_eq!(sums(), (3, 4));
        a.set_status(Status { cordoned: true, ejected: true, ..Status::default() });
        a.end_build();
        assert_eq!(sums(), (1, 2));
        a.set_status(Status { cordoned: true, ..Status::default() });
        assert_eq!(sums(), (1, 2));
        a.set_status(Status::default());
        assert_eq!(sums(), (2, 4));
        b.set_status(Status { departed: true, ..Status::default() });
        b.end_build();
        a.set_capacity(5);
        assert_eq!(sums(), (1, 5));
    }

    #[test]
    fn a_slow_start_goes_from_a_tenth_to_the_whole() {
        let joined = Instant::now();
        let second = Duration::from_secs(1);
        let weight = |joined, after| {
            Candidate::new("a", 1, joined, &Arc::default()).weight(after, second * 30)
        };
        assert_eq!(weight(Some(joined), joined), FIRST_SHARE);
        assert_eq!(weight(Some(joined), joined + second * 15), FULL_SHARE / 2);
        assert_eq!(weight(Some(joined), joined + second * 30), FULL_SHARE);
        assert_eq!(weight(None, joined), FULL_SHARE);
        let off = Candidate::new("a", 3, Some(joined), &Arc::default());
        assert_eq!(off.weight(joined, Duration::ZERO), 3 * FULL_SHARE);
    }
}
