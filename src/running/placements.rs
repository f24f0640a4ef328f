//! How the builds of the last hour were placed: a count for each outcome and minute, in a table of fixed size.

use std::time::Instant;

use crate::policy::Outcome;

/// The minutes that are remembered. An hour shows what changed before somebody was called.
const MINUTES: usize = 60;

/// The number of builds that were placed in one minute, by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Minute([u32; Outcome::ALL.len()]);

impl Minute {
    /// How many builds were placed with `outcome`.
    pub fn count(&self, outcome: Outcome) -> u32 {
        self.0[outcome as usize]
    }

    /// How many builds were placed.
    pub fn total(&self) -> u32 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// The counts of the last hour. The minute `n` after the beginning has the row `n % MINUTES`.
#[derive(Debug)]
pub(super) struct Placements {
    began: Instant,
    /// The last minute for which a row holds.
    latest: u64,
    rows: [Minute; MINUTES],
}

impl Placements {
    /// A table without builds; `now` is the time that minutes are counted from.
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, latest: 0, rows: [Minute::default(); MINUTES] }
    }

    /// Counts a build that was placed with `outcome` at `now`.
    pub(super) fn note(&mut self, outcome: Outcome, now: Instant) {
        let minute = self.minute(now);
        self.advance(minute);
        // A build that waited long enough counts for the latest minute: its own may have another's row.
        let count = &mut self.rows[row(minute.max(self.latest))].0[outcome as usize];
        *count = count.saturating_add(1);
    }

    /// The rows of the last hour, that of `now` last.
    pub(super) fn last_hour(&mut self, now: Instant) -> Vec<Minute> {
        self.advance(self.minute(now));
        let oldest = self.latest + 1;
        (oldest..oldest + MINUTES as u64).map(|minute| self.rows[row(minute)]).collect()
    }

    fn minute(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs() / 60
    }

    /// Clears the rows of the minutes that have begun since the last build.
    fn advance(&mut self, minute: u64) {
        if minute <= self.latest {
            return;
        }
        let begun = (minute - self.latest).min(MINUTES as u64);
        for begun in minute + 1 - begun..=minute {
            self.rows[row(begun)] = Minute::default();
        }
        self.latest = minute;
    }
}

fn row(minute: u64) -> usize {
    usize::try_from(minute % MINUTES as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(count * 60)
    }

    #[test]
    fn each_minute_counts_its_own_builds_for_one_hour() {
        let now = Instant::now();
        let mut placements = Placements::new(now);
        for (minute, outcome) in
            [(0, Outcome::Home), (0, Outcome::Spill), (1, Outcome::Home), (3, Outcome::Home)]
        {
            placements.note(outcome, now + minutes(minute));
        }
        let of = |hour: &[Minute]| hour.iter().map(Minute::total).collect::<Vec<_>>();
        let hour = placements.last_hour(now + minutes(4));
        assert_eq!(of(&hour)[55..], [2, 1, 0, 1, 0]);
        assert_eq!((hour[55].count(Outcome::Home), hour[55].count(Outcome::Spill)), (1, 1));
        // The first minute leaves the table when the sixtieth after it begins.
        let hour = placements.last_hour(now + minutes(60));
        assert_eq!(of(&hour)[..3], [1, 0, 1]);
        assert_eq!(of(&placements.last_hour(now + minutes(1000))), [0; MINUTES]);
    }

    #[test]
    fn a_build_from_before_the_latest_minute_counts_for_the_latest() {
        let now = Instant::now();
        let mut placements = Placements::new(now);
        placements.note(Outcome::Home, now + minutes(70));
        placements.note(Outcome::Warm, now + minutes(9));
        let hour = placements.last_hour(now + minutes(70));
        assert_eq!((hour[59].total(), hour[59].count(Outcome::Warm)), (2, 1));
    }
}
