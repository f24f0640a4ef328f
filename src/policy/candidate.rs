//! One backend as the policies see it, and the sums over all backends that are fit for new builds.
//!
//! Every decision needs the sums, so they are kept up to date instead of being calculated each time.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use twox_hash::XxHash3_64;

/// The weight of a backend of capacity 1 after its slow start. It is large enough that a slow start has fine steps.
pub(super) const FULL_SHARE: u64 = 1024;

/// The weight at the beginning of a slow start: a tenth, because a backend without builds would never get warm.
const FIRST_SHARE: u64 = FULL_SHARE / 10;

const CORDONED: u8 = 1;
const EJECTED: u8 = 2;
const DEPARTED: u8 = 4;
const UNREADY: u8 = 8;
const DEGRADED: u8 = 16;

/// What keeps a backend from new builds. The default is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// The backend finishes its builds and takes no new ones, even if no backend is ready.
    pub cordoned: bool,
    /// A connection to the backend failed and no probe has passed since.
    pub ejected: bool,
    /// The backend gets no builds as long as others can take them.
    pub unready: bool,
    /// The backend fails builds for reasons of its own, and takes builds only if no other backend does.
    pub degraded: bool,
    /// The backend has left the fleet, and the builds that it still runs are not counted.
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

/// One backend, with the facts that matter to a policy. Every change also updates the [`Totals`].
#[derive(Debug)]
pub struct Candidate {
    hash: u64,
    capacity: AtomicU32,
    builds: AtomicU32,
    /// The bits of the [`Status`].
    status: AtomicU8,
    joined: Option<Instant>,
    totals: Arc<Totals>,
}

/// The builds and the capacity of all candidates of a fleet that are fit for new builds.
#[derive(Debug, Default)]
pub struct Totals {
    change: Mutex<()>,
    builds: AtomicU64,
    capacity: AtomicU64,
}

impl Totals {
    /// How many builds the fit candidates run.
    pub(super) fn builds(&self) -> u64 {
        self.builds.load(Ordering::Relaxed)
    }

    /// The capacity of the fit candidates.
    pub(super) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }
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

    /// How many builds the candidate runs.
    pub fn builds(&self) -> u32 {
        self.builds.load(Ordering::Relaxed)
    }

    /// The size relative to other candidates.
    pub fn capacity(&self) -> u32 {
        self.capacity.load(Ordering::Relaxed)
    }

    /// Whether the candidate takes new builds.
    pub fn is_ready(&self) -> bool {
        self.status.load(Ordering::Relaxed) & !DEGRADED == 0
    }

    /// Whether the candidate takes new builds and is not degraded.
    pub fn is_fit(&self) -> bool {
        self.status.load(Ordering::Relaxed) == 0
    }

    /// Whether the candidate fails builds for reasons of its own.
    pub fn is_degraded(&self) -> bool {
        self.status.load(Ordering::Relaxed) & DEGRADED != 0
    }

    /// Whether the candidate finishes its builds and takes no new ones.
    pub fn is_cordoned(&self) -> bool {
        self.status.load(Ordering::Relaxed) & CORDONED != 0
    }

    /// Whether the candidate may run one more build, with `slots` builds for each unit of capacity.
    pub(super) fn has_slot(&self, slots: Option<NonZeroU32>) -> bool {
        slots.is_none_or(|slots| u64::from(self.builds()) < self.slots(slots))
    }

    /// How many builds the candidate runs at once, with `each` builds for a unit of capacity.
    pub fn slots(&self, each: NonZeroU32) -> u64 {
        u64::from(each.get()) * u64::from(self.capacity())
    }

    /// Counts one more build, on the candidate and in the sums.
    pub fn start_build(&self) {
        self.change(|| {
            self.builds.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Counts one build less, on the candidate and in the sums.
    pub fn end_build(&self) {
        self.change(|| {
            self.builds.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Sets the size. The ranking changes with the next [`Candidates::new`](super::Candidates::new).
    pub fn set_capacity(&self, capacity: u32) {
        self.change(|| self.capacity.store(capacity.max(1), Ordering::Relaxed));
    }

    /// Sets what keeps the candidate from new builds.
    pub fn set_status(&self, status: Status) {
        self.change(|| self.status.store(status.bits(), Ordering::Relaxed));
    }

    /// Whether a connection to the candidate failed and no probe has succeeded since.
    pub fn is_ejected(&self) -> bool {
        self.status.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// The hash of the name, shortened to save memory where many keys are remembered.
    pub(super) fn tag(&self) -> u32 {
        tag(self.hash)
    }

    /// The hash of the name.
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// When the candidate joined a running fleet, if it did.
    pub(super) fn joined(&self) -> Option<Instant> {
        self.joined
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

    /// The capacity, reduced to the share that a slow start allows at `now`.
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
    // Any 32 bits of a hash are as good as any others.
    #[allow(clippy::cast_possible_truncation)]
    let tag = hash as u32;
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_follow_every_change() {
        let totals = Arc::new(Totals::default());
        let sums = || (totals.builds(), totals.capacity());
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
