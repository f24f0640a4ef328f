//! Weighted rendezvous hashing: how the candidates rank for a key.
//!
//! A score depends on the key and on the candidate's stable name and capacity alone. All replicas and all restarts
//! therefore agree, and a candidate that leaves moves only its own keys (Thaler and Ravishankar, 1998). The score is
//! -ln(u) / capacity, with u between 0 and 1 from the hash, and the lowest score wins. The chance to win is then
//! proportional to the capacity. Candidates of one capacity rank by their hashes.

use super::candidates::{Candidates, Row};

/// How many of the first ranks a decision looks at before it looks at all candidates.
///
/// If all but a few candidates are below their limits, one decision in thousands needs the ninth.
const FIRST: usize = 8;

/// The golden ratio in 64 bits: an odd number with as many ones as zeros, in no pattern.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// The score of a candidate for a key. A lower score is better.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
struct Score {
    cost: f64,
    /// The complement of the hash, so that a higher hash is a lower score. It alone decides within a class.
    rest: u64,
}

/// The rows of the best candidates for a key, the best first.
#[derive(Debug)]
pub(super) struct First {
    rows: [Row; FIRST],
    len: usize,
}

impl First {
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows[..self.len]
    }
}

/// The first ranks for `key`.
pub(super) fn first(key: u64, candidates: &Candidates) -> First {
    let mut best = Best::default();
    match candidates.classes() {
        [] => {}
        [_one] => best.add_class(key, candidates.hashes(), 0),
        classes => {
            let mut scored = Scored::default();
            for class in classes {
                let mut best = Best::default();
                best.add_class(key, &candidates.hashes()[class.range.clone()], class.range.start);
                for entry in &best.entries[..best.len] {
                    if !scored.add(Score::new(entry.hash, class.capacity), entry.row) {
                        break;
                    }
                }
            }
            return First { rows: scored.entries.map(|(_, row)| row), len: scored.len };
        }
    }
    First { rows: best.entries.map(|entry| entry.row), len: best.len }
}

/// The rows of all candidates, the best for `key` first.
pub(super) fn all(key: u64, candidates: &Candidates) -> Vec<Row> {
    let mut scored: Vec<_> = scores(key, candidates).collect();
    scored.sort_by(|(a, _), (b, _)| a.cost.total_cmp(&b.cost).then(a.rest.cmp(&b.rest)));
    scored.into_iter().map(|(_, row)| row).collect()
}

/// How many candidates rank above the one in `row`.
pub(super) fn rank(key: u64, candidates: &Candidates, row: Row) -> usize {
    let hash = mix(candidates.hash(row), key);
    match candidates.classes() {
        [_one] => candidates.hashes().iter().filter(|other| mix(**other, key) > hash).count(),
        classes => {
            let own = classes.iter().find(|class| class.has(row));
            let own = own.map(|class| Score::new(hash, class.capacity));
            scores(key, candidates).filter(|(score, _)| Some(*score) < own).count()
        }
    }
}

/// The row of the best candidate that `wanted` accepts.
pub(super) fn best(key: u64, candidates: &Candidates, wanted: impl Fn(Row) -> bool) -> Option<Row> {
    let wanted = scores(key, candidates).filter(|(_, row)| wanted(*row));
    wanted.reduce(|best, next| if next.0 < best.0 { next } else { best }).map(|(_, row)| row)
}

fn scores(key: u64, candidates: &Candidates) -> impl Iterator<Item = (Score, Row)> {
    candidates.classes().iter().flat_map(move |class| {
        class
            .rows()
            .map(move |row| (Score::new(mix(candidates.hash(row), key), class.capacity), row))
    })
}

/// Combines both halves of the product, so that each bit of the result depends on all bits of both inputs.
#[allow(clippy::cast_possible_truncation)]
fn mix(candidate: u64, key: u64) -> u64 {
    let product = u128::from(candidate ^ key) * u128::from(MULTIPLIER);
    (product >> 64) as u64 ^ product as u64
}

impl Score {
    fn new(hash: u64, capacity: u32) -> Self {
        Self { cost: cost(hash) / f64::from(capacity), rest: !hash }
    }
}

/// -ln(u), where u is the middle of the step of width 2^-53 between 0 and 1 that `hash` falls on.
///
/// The function uses only additions, multiplications and divisions, for which IEEE 754 gives one result everywhere. The
/// logarithms of two C libraries may differ in the last bit.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn cost(hash: u64) -> f64 {
    const HALF_STEP: f64 = 0.5 / (1_u64 << 53) as f64;
    let u = (hash >> 11) as f64 / (1_u64 << 53) as f64 + HALF_STEP;
    // u = m * 2^e with m from 2/3 to 4/3; ln(m) = 2 * atanh(s) for s = (m - 1) / (m + 1).
    let bits = u.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if mantissa > 4.0 / 3.0 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 0.0;
    for odd in [23.0, 21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        series = series * square + 1.0 / odd;
    }
    -(f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * series)
}

#[derive(Debug, Default, Clone, Copy)]
struct Ranked {
    hash: u64,
    row: Row,
}

/// The highest hashes so far, the highest first.
#[derive(Debug, Default)]
struct Best {
    entries: [Ranked; FIRST],
    len: usize,
}

impl Best {
    /// Adds the best hashes of one class.
    ///
    /// The first threshold is set so that about three times as many hashes as needed exceed it. Nearly all other hashes
    /// then cost one comparison, which the processor predicts well.
    fn add_class(&mut self, key: u64, hashes: &[u64], start: usize) {
        let one_of = u64::MAX / hashes.len().max(1) as u64;
        self.add_above(u64::MAX - one_of.saturating_mul(3 * FIRST as u64), key, hashes, start);
        if self.len < FIRST.min(hashes.len()) {
            self.len = 0;
            for (offset, hash) in hashes.iter().enumerate() {
                self.insert(Ranked { hash: mix(*hash, key), row: Row(start + offset) });
            }
        }
    }

    fn add_above(&mut self, mut least: u64, key: u64, hashes: &[u64], start: usize) {
        for (offset, hash) in hashes.iter().enumerate() {
            let hash = mix(*hash, key);
            if hash > least {
                self.insert(Ranked { hash, row: Row(start + offset) });
                if self.len == FIRST {
                    least = self.entries[FIRST - 1].hash;
                }
            }
        }
    }

    /// Inserts a hash. Of two equal hashes the first one stays in front.
    #[inline(never)]
    fn insert(&mut self, entry: Ranked) {
        let mut at = self.len;
        if at == FIRST {
            at -= 1;
            if self.entries[at].hash >= entry.hash {
                return;
            }
        }
        self.len = at + 1;
        while at > 0 && self.entries[at - 1].hash < entry.hash {
            self.entries[at] = self.entries[at - 1];
            at -= 1;
        }
        self.entries[at] = entry;
    }
}

/// The lowest scores so far, the lowest first.
#[derive(Debug)]
struct Scored {
    entries: [(Score, Row); FIRST],
    len: usize,
}

impl Default for Scored {
    fn default() -> Self {
        Self { entries: [(Score { cost: f64::INFINITY, rest: 0 }, Row(0)); FIRST], len: 0 }
    }
}

impl Scored {
    /// Adds a score. Returns whether it is among the lowest.
    fn add(&mut self, score: Score, row: Row) -> bool {
        let at = self.entries[..self.len].partition_point(|(other, _)| *other <= score);
        if at == FIRST {
            return false;
        }
        self.len = (self.len + 1).min(FIRST);
        self.entries[at..self.len].rotate_right(1);
        self.entries[at] = (score, row);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::cast_precision_loss)]
    fn the_cost_is_the_logarithm() {
        for step in 0..=10_000_u64 {
            let hash = step * (u64::MAX / 10_000);
            let u = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
            let (ours, exact) = (cost(hash), -u.ln());
            assert!((ours - exact).abs() <= 1e-14 * exact.max(1.0), "{ours} is not {exact}");
        }
    }

    #[test]
    fn the_cost_is_frozen() {
        let costs = [0, 1 << 40, 0x5555_5555_5555_5555, u64::MAX].map(|hash| cost(hash).to_bits());
        assert_eq!(
            costs,
            [
                0x4042_b708_8723_20e2,
                0x4030_a2b2_3f37_ab73,
                0x3ff1_93ea_7aad_030a,
                0x8000_0000_0000_0000,
            ]
        );
    }
}
