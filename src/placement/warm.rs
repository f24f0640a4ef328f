//! Warm memory: where each key was placed last.
//!
//! A backend that joins is the new home of some keys and cold for all of them. For a bounded time and a
//! bounded number of keys, this remembers the two backends that built a key last, so that it may stay
//! where it is warm. The least recently built key is forgotten first.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::policy::{Candidate, KeyHash, Warm};

/// Keys remembered: more projects than most fleets build in a day, in at most 10 MB.
const DEFAULT_MAX_KEYS: NonZeroU32 = NonZeroU32::new(100_000).expect("not zero");

/// A day: the nightly build of a project finds its cache.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 3600);

/// No node.
const NONE: u32 = u32::MAX;

/// How much is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Whether anything is.
    pub enabled: bool,
    /// Keys at most.
    pub max_keys: NonZeroU32,
    /// How long after its last build a key is remembered.
    pub ttl: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, max_keys: DEFAULT_MAX_KEYS, ttl: DEFAULT_TTL }
    }
}

/// A key's place in the order of use: a list through indices, 32 bytes for each.
#[derive(Debug)]
struct Node {
    key: KeyHash,
    warm: Warm,
    /// Seconds from the memory's beginning.
    built: u32,
    older: u32,
    newer: u32,
}

/// The memory of one fleet.
#[derive(Debug)]
pub struct WarmMemory {
    config: Config,
    began: Instant,
    nodes: Vec<Node>,
    index: HashMap<KeyHash, u32>,
    newest: u32,
    oldest: u32,
}

impl WarmMemory {
    /// A memory of nothing.
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            began: now,
            nodes: Vec::new(),
            index: HashMap::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// Keys remembered.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no key is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Who built `key` last.
    pub fn get(&self, key: KeyHash, now: Instant) -> Option<Warm> {
        let node = &self.nodes[*self.index.get(&key)? as usize];
        self.is_fresh(node, now).then_some(node.warm)
    }

    /// Notes that `candidate` builds `key`.
    pub fn note(&mut self, key: KeyHash, candidate: &Candidate, now: Instant) {
        if !self.config.enabled {
            return;
        }
        self.forget_old(now);
        let built = self.seconds(now);
        if let Some(at) = self.index.get(&key).copied() {
            self.unlink(at);
            let node = &mut self.nodes[at as usize];
            (node.warm, node.built) = (node.warm.and(candidate), built);
            self.link_newest(at);
            return;
        }
        if self.nodes.len() >= self.config.max_keys.get() as usize {
            self.forget(self.oldest);
        }
        // Below max_keys, so below NONE.
        let at = u32::try_from(self.nodes.len()).unwrap_or(NONE - 1);
        let warm = Warm::new(candidate);
        self.nodes.push(Node { key, warm, built, older: NONE, newer: NONE });
        self.index.insert(key, at);
        self.link_newest(at);
    }

    /// Two at most, so that no call pays for a quiet night.
    fn forget_old(&mut self, now: Instant) {
        for _ in 0..2 {
            match self.nodes.get(self.oldest as usize) {
                Some(node) if !self.is_fresh(node, now) => self.forget(self.oldest),
                _ => return,
            }
        }
    }

    fn is_fresh(&self, node: &Node, now: Instant) -> bool {
        let age = self.seconds(now).saturating_sub(node.built);
        Duration::from_secs(age.into()) < self.config.ttl
    }

    fn seconds(&self, now: Instant) -> u32 {
        let seconds = now.saturating_duration_since(self.began).as_secs();
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }

    /// Removes the node and moves the last one into its place.
    fn forget(&mut self, at: u32) {
        self.unlink(at);
        let node = self.nodes.swap_remove(at as usize);
        self.index.remove(&node.key);
        let Some(moved) = self.nodes.get(at as usize) else { return };
        let (key, older, newer) = (moved.key, moved.older, moved.newer);
        self.index.insert(key, at);
        *self.newer_of(older) = at;
        *self.older_of(newer) = at;
    }

    fn unlink(&mut self, at: u32) {
        let Node { older, newer, .. } = self.nodes[at as usize];
        *self.newer_of(older) = newer;
        *self.older_of(newer) = older;
    }

    fn link_newest(&mut self, at: u32) {
        let older = self.newest;
        let node = &mut self.nodes[at as usize];
        (node.older, node.newer) = (older, NONE);
        *self.newer_of(older) = at;
        self.newest = at;
    }

    /// What points from the node at `at` to the newer one; from before the oldest, that is the oldest.
    fn newer_of(&mut self, at: u32) -> &mut u32 {
        self.nodes.get_mut(at as usize).map_or(&mut self.oldest, |node| &mut node.newer)
    }

    fn older_of(&mut self, at: u32) -> &mut u32 {
        self.nodes.get_mut(at as usize).map_or(&mut self.newest, |node| &mut node.older)
    }

    /// Memory that it holds, as its parts' capacities tell.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        // A map entry has one byte of control; a table is at most seven eighths full.
        let buckets = (self.index.capacity() * 8).div_ceil(7).next_power_of_two();
        self.nodes.capacity() * size_of::<Node>() + buckets * (size_of::<(KeyHash, u32)>() + 1)
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
        for id in [1, 2, 2, 3] {
            memory.note(key(1), &candidate(id), now);
        }
        assert_eq!(memory.get(key(1), now), Some(Warm::new(&candidate(2)).and(&candidate(3))));
        assert_eq!(memory.get(key(2), now), None);
    }

    #[test]
    fn a_key_is_forgotten_after_its_time() {
        let (mut memory, now) = memory(10, 60);
        let later = |seconds| now + Duration::from_secs(seconds);
        (0..5).for_each(|id| memory.note(key(id), &candidate(1), later(id)));
        assert!(memory.get(key(4), later(63)).is_some());
        assert!(memory.get(key(4), later(64)).is_none());
        memory.note(key(9), &candidate(1), later(100));
        memory.note(key(9), &candidate(1), later(100));
        memory.note(key(9), &candidate(1), later(100));
        assert_eq!(memory.len(), 1);
    }

    #[test]
    fn nothing_is_remembered_when_it_is_off() {
        let now = Instant::now();
        let mut memory = WarmMemory::new(Config { enabled: false, ..Config::default() }, now);
        memory.note(key(1), &candidate(1), now);
        assert!(memory.is_empty());
    }

    #[test]
    fn a_million_keys_fit_into_a_hundred_megabytes() {
        let (mut memory, now) = memory(1_000_000, 60);
        let candidate = candidate(1);
        // Twice as many, so that the oldest half is forgotten on the way.
        let key = |id: u32| KeyHash::new(&id.to_string());
        (0..2_000_000).for_each(|id| memory.note(key(id), &candidate, now));
        let (keys, bytes) = (memory.len(), memory.bytes());
        println!("{keys} keys in {bytes} bytes, {} for each", bytes / keys);
        assert_eq!(keys, 1_000_000);
        assert!(bytes <= 100_000_000, "{bytes}");
        assert!(memory.get(key(999_999), now).is_none());
        assert!(memory.get(key(1_000_000), now).is_some());
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
