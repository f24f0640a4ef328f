//! The answers of daemons about themselves and what they can do, for clients that ask while there is no daemon to
//! answer.
//!
//! A client makes three calls before it sends anything of a build: `Info`, `ListWorkers`, and the `Ping` of the
//! build itself. The answers of one daemon count for all daemons of its version.

mod learn;
mod probes;
mod promise;

use std::collections::BTreeSet;

use bytes::Bytes;
use parking_lot::Mutex;

pub use self::{
    learn::learn,
    probes::{Probe, Probes},
    promise::Promise,
};
use crate::{fleet::Version, wire::pong::Features};

/// The most versions that are remembered. A fleet has two in the middle of an upgrade.
const MAX_VERSIONS: usize = 8;

/// The answers of daemons of one version. Each is a whole gRPC message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The version of the daemons.
    pub version: Version,
    /// The answer to `Control/Info`.
    pub info: Bytes,
    /// The answer to `Control/ListWorkers`.
    pub workers: Bytes,
    /// The answer to `LLBBridge/Ping`, called Pong.
    pub pong: Bytes,
    /// The features that the Pong names.
    pub features: Features,
}

/// What is remembered of the daemons of one pool.
#[derive(Debug, Default)]
pub struct Capabilities {
    /// The answers of each version, the oldest first.
    known: Mutex<Vec<Answers>>,
    /// The versions of which a daemon is being asked now.
    asked: Mutex<Vec<Version>>,
    /// The probes of clients that wait.
    pub probes: Probes,
}

impl Capabilities {
    /// The right to ask a daemon of this version. `None` if its answers are known, or a daemon of it is being
    /// asked.
    pub fn turn(&self, version: &Version) -> Option<Turn<'_>> {
        if self.known.lock().iter().any(|answers| answers.version == *version) {
            return None;
        }
        let mut asked = self.asked.lock();
        if asked.contains(version) {
            return None;
        }
        asked.push(version.clone());
        Some(Turn { capabilities: self, version: version.clone() })
    }

    /// Remembers `answers`, and forgets those of versions that no backend has any more. `present` are the versions
    /// in the fleet.
    ///
    /// A fleet that has scaled to zero may come back with any version, so the last answers are kept until then.
    pub fn remember(&self, answers: Answers, present: &BTreeSet<Version>) {
        let mut known = self.known.lock();
        known.retain(|other| other.version != answers.version && present.contains(&other.version));
        if known.len() < MAX_VERSIONS {
            known.push(answers);
            known.sort_by(|one, other| one.version.cmp(&other.version));
        }
    }

    /// The answers of the oldest version. Daemons of newer versions can do as much.
    pub fn oldest(&self) -> Option<Answers> {
        self.known.lock().first().cloned()
    }

    /// Whether a daemon of `version` has all features of `promised`. A daemon of unknown features does not.
    pub fn keeps(&self, promised: &Answers, version: Option<&Version>) -> bool {
        let covers = |known: &Answers| {
            Some(&known.version) == version && known.features.cover(&promised.features)
        };
        version == Some(&promised.version) || self.known.lock().iter().any(covers)
    }
}

/// The right to ask a daemon of one version, which nobody else has at the same time.
#[derive(Debug)]
pub struct Turn<'a> {
    capabilities: &'a Capabilities,
    version: Version,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.capabilities.asked.lock().retain(|version| *version != self.version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    pub(super) fn answers(version: &str) -> Answers {
        let text = Bytes::copy_from_slice(version.as_bytes());
        let (info, workers, pong) = (text.clone(), text.clone(), text);
        let features = Features::default();
        Answers { version: Version::new(version), info, workers, pong, features }
    }

    /// Answers of a version with one feature, whose name is this letter.
    fn with_feature(version: &str, letter: u8) -> Answers {
        let features = Features::read(&frame(&[0x0a, 5, 0x0a, 1, letter, 0x10, 1]));
        Answers { features: features.expect("a PongResponse"), ..answers(version) }
    }

    fn present(versions: &[&str]) -> BTreeSet<Version> {
        versions.iter().map(|version| Version::new(version)).collect()
    }

    #[test]
    fn a_client_is_promised_what_the_oldest_can() {
        let capabilities = Capabilities::default();
        assert_eq!(capabilities.oldest(), None);
        let both = present(&["v0.16.0", "v0.32.2"]);
        for version in ["v0.32.2", "v0.16.0"] {
            capabilities.remember(answers(version), &both);
        }
        assert_eq!(capabilities.oldest(), Some(answers("v0.16.0")));
    }

    #[test]
    fn what_a_fleet_had_is_known_until_it_has_something_else() {
        let capabilities = Capabilities::default();
        capabilities.remember(answers("v0.16.0"), &present(&["v0.16.0"]));
        assert_eq!(capabilities.oldest(), Some(answers("v0.16.0")));
        capabilities.remember(answers("v0.32.2"), &present(&["v0.32.2"]));
        assert_eq!(capabilities.oldest(), Some(answers("v0.32.2")));
        assert!(capabilities.turn(&Version::new("v0.16.0")).is_some(), "it is forgotten");
    }

    #[test]
    fn a_promise_is_kept_by_its_version_and_by_those_with_its_features() {
        let capabilities = Capabilities::default();
        let all = present(&["v0.16.0", "v0.31.0", "v0.32.2"]);
        capabilities.remember(answers("v0.16.0"), &all);
        capabilities.remember(with_feature("v0.32.2", b'x'), &all);
        let kept_by = |promised: &Answers, version| {
            capabilities.keeps(promised, Some(&Version::new(version)))
        };
        let promised = with_feature("v0.31.0", b'x');
        assert!(
            kept_by(&promised, "v0.31.0"),
            "of the same version, although that has not been asked"
        );
        assert!(kept_by(&promised, "v0.32.2"));
        assert!(!kept_by(&promised, "v0.16.0") && !kept_by(&promised, "v0.33.0"));
        assert!(!capabilities.keeps(&promised, None));
        assert!(!kept_by(&with_feature("v0.31.0", b'y'), "v0.32.2"));
        assert!(kept_by(&answers("v0.31.0"), "v0.16.0"), "nothing is promised");
    }

    #[test]
    fn a_version_is_asked_once() {
        let capabilities = Capabilities::default();
        let version = Version::new("v0.32.2");
        let turn = capabilities.turn(&version).expect("nothing is known");
        assert!(capabilities.turn(&version).is_none(), "another asks");
        assert!(capabilities.turn(&Version::new("v0.16.0")).is_some());
        drop(turn);
        assert!(capabilities.turn(&version).is_some(), "that one learnt nothing");
        capabilities.remember(answers("v0.32.2"), &present(&["v0.32.2"]));
        assert!(capabilities.turn(&version).is_none(), "it is known");
    }

    #[test]
    fn no_fleet_makes_it_remember_without_bound() {
        let capabilities = Capabilities::default();
        let versions: Vec<_> = (0..50).map(|patch| format!("v0.32.{patch}")).collect();
        let all = present(&versions.iter().map(String::as_str).collect::<Vec<_>>());
        versions.iter().for_each(|version| capabilities.remember(answers(version), &all));
        assert_eq!(capabilities.known.lock().len(), MAX_VERSIONS);
    }
}
