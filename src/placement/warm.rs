//! Warm memory: where each key was built last.
//!
//! A backend that joins becomes the new home of some keys, and is cold for all of them. This memory holds the two
//! backends that built a key last, so that builds can stay where the key is warm. The memory is bounded in time and in
//! keys; the least recently built key is forgotten first.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::policy::{Candidate, KeyHash, Warm};

/// How many keys are remembered: more projects than most fleets build in a day, in at most 10 MB.
const DEFAULT_MAX_KEYS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");

/// One day, so that the nightly build of a project finds its cache.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// The limits of the warm memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Whether keys are remembered at all.
    pub enabled: bool,
    /// How many keys are remembered at most.
    pub max_keys: NonZeroU32,
    /// How long a key is remembered after its last build.
    pub ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, max_keys: DEFAULT_MAX_KEYS, ttl: DEFAULT_TTL }
    }
}

/// The backends that built a key last.
#[derive(Debug)]
struct Built {
    on: Warm,
    /// The time of the last build, in seconds since the memory began.
    at: u32,
}

/// The warm memory of one fleet.
#[derive(Debug)]
pub struct WarmMemory {
    config: Config,
    began: Instant,
    /// Bounded by `config.max_keys`. A map of a fixed size would take its memory at once.
    keys: LruCache<KeyHash, Built>,
}

impl WarmMemory {
    /// An empty memory; `now` is the time that ages are measured from.
    pub fn new(config: Config, now: Instant) -> Self {
        Self { config, began: now, keys: LruCache::unbounded() }
    }

    /// How many keys are remembered.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The backends that built `key` last, unless that was longer ago than the memory's time to live.
    pub fn get(&self, key: KeyHash, now: Instant) -> Option<Warm> {
        let built = self.keys.peek(&key)?;
        self.is_fresh(built, now).then_some(built.on)
    }

    /// Notes that `candidate` builds `key`. Returns whether `candidate` is one of the backends that built the key last;
    /// `None` if nothing is remembered.
    pub fn note(&mut self, key: KeyHash, candidate: &Candidate, now: Instant) -> Option<bool> {
        if !self.config.enabled {
            return None;
        }
        self.forget_old(now);
        let at = self.seconds(now);
        let ttl = self.config.ttl;
        if let Some(built) = self.keys.get_mut(&key) {
            let age = Duration::from_secs(at.saturating_sub(built.at).into());
            let before = age < ttl && built.on.includes(candidate);
            *built = Built { on: built.on.and(candidate), at };
            return Some(before);
        }
        if self.keys.len() >= self.config.max_keys.get() as usize {
            self.keys.pop_lru();
        }
        self.keys.put(key, Built { on: Warm::new(candidate), at });
        Some(false)
    }

    /// Forgets two keys at most, so that no build pays for all the keys that expired in a quiet night.
    fn forget_old(&mut self, now: Instant) {
        for _ in 0..2 {
            match self.keys.peek_lru() {
                Some((_, oldest)) if !self.is_fresh(oldest, now) => self.keys.pop_lru(),
                _ => return,
            };
        }
    }

    fn is_fresh(&self, built: &Built, now: Instant) -> bool {
        let age = self.seconds(now).saturating_sub(built.at);
        Duration::from_secs(age.into()) < self.config.ttl
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.began).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::Arc};

    use proptest::prelude::*;

    use super::*;

    fn memory(max_keys: u32, ttl: u64) -> (WarmMemory, Instant) {
        let max_keys = NonZeroU32::new(max_keys).expect("not zero");
        let ttl = Duration::from_secs(ttl);
        let now = Instant::now();
        (WarmMemory::new(Config { enabled: true, max_keys, ttl }, now), now)
    }

    fn candidate(id: u8) -> Candidate {
        Candidate::new(&format!("b-{id}"), 1, None, &Arc::default())
    }

    fn key(id: u64) -> KeyHash {
        KeyHash::new(&id.to_string())
    }

    #[test]
    fn the_last_two_backends_of_a_key_are_remembered() {
        let (mut memory, now) = memory(10, 60);
        assert_eq!(memory.get(key(1), now), None);
        for (id, before) in [(1, false), (2, false), (2, true), (3, false), (2, true), (1, false)] {
            assert_eq!(memory.note(key(1), &candidate(id), now), Some(before), "{id}");
        }
        memory.note(key(1), &candidate(2), now);
        memory.note(key(1), &candidate(3), now);
        assert_eq!(memory.get(key(1), now), Some(Warm::new(&candidate(2)).and(&candidate(3))));
        assert_eq!(memory.get(key(2), now), None);
    }

    #[test]
    fn a_key_is_forgotten_after_its_time() {
        let (mut memory, now) = memory(10, 60);
        let later = |seconds| now + Duration::from_secs(seconds);
        for id in 0..5 {
            memory.note(key(id), &candidate(1), later(id));
        }
        assert!(memory.get(key(4), later(63)).is_some());
        assert!(memory.get(key(4), later(64)).is_none());
        assert_eq!(memory.note(key(4), &candidate(1), later(64)), Some(false));
        memory.note(key(9), &candidate(1), later(200));
        memory.note(key(9), &candidate(1), later(200));
        memory.note(key(9), &candidate(1), later(200));
        assert_eq!(memory.len(), 1);
    }

    #[test]
    fn nothing_is_remembered_when_it_is_off() {
        let now = Instant::now();
        let mut memory = WarmMemory::new(Config { enabled: false, ..Config::default() }, now);
        assert_eq!(memory.note(key(1), &candidate(1), now), None);
        assert!(memory.is_empty());
    }

    proptest! {
        #[test]
        fn the_least_recently_built_keys_go_first(
            builds in prop::collection::vec((0..12_u64, 0..3_u64), 1..200),
            max_keys in 1..8_u32,
        ) {
            let (mut memory, mut now) = memory(max_keys, 20);
            let mut expected: VecDeque<(u64, Instant)> = VecDeque::new();
            for (id, pause) in builds {
                now += Duration::from_secs(pause);
                memory.note(key(id), &candidate(1), now);
                expected.retain(|(known, _)| *known != id);
                expected.push_back((id, now));
                if expected.len() > max_keys as usize {
                    expected.pop_front();
                }
                prop_assert!(memory.len() <= max_keys as usize);
                for id in 0..12 {
                    let fresh = |(known, at): &(u64, Instant)| {
                        *known == id && now - *at < Duration::from_secs(20)
                    };
                    let known = memory.get(key(id), now).is_some();
                    prop_assert_eq!(known, expected.iter().any(fresh), "key {}", id);
                }
            }
        }
    }
}
