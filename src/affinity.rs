//! The affinity key: what two builds of one project have in common, wherever they run.
//!
//! A key never contains tags, commits, values of build arguments, paths of a checkout or random names, because they
//! differ between jobs. It contains target and platform only if the rules say so, because the targets of one project
//! share stages.

mod facts;
mod normal;
pub mod rules;
pub mod shared_keys;
mod sources;

use twox_hash::XxHash3_64;

pub use self::{facts::Facts, rules::Rules};

/// The longest key, in bytes. Each build's log record and `/status.json` contain it.
const MAX_KEY_LEN: usize = 256;

/// A key and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityKey {
    /// The normalised text that is hashed.
    pub key: String,
    /// The source's name in logs and metrics.
    pub source: &'static str,
}

impl AffinityKey {
    /// A key from `source`. A key that is too long is cut, and a digest of the whole is appended, so that it differs from
    /// other keys with the same beginning.
    fn new(mut key: String, source: &'static str) -> Self {
        if key.len() > MAX_KEY_LEN {
            let digest = format!("~{:016x}", XxHash3_64::oneshot(key.as_bytes()));
            let most = MAX_KEY_LEN - digest.len();
            let end = (0..=most).rev().find(|end| key.is_char_boundary(*end)).unwrap_or(0);
            key.truncate(end);
            key.push_str(&digest);
        }
        Self { key, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_is_cut_and_stays_different_from_others_that_begin_like_it() {
        let key = |text: String| AffinityKey::new(text, "hint").key;
        assert_eq!(key("x".repeat(MAX_KEY_LEN)), "x".repeat(MAX_KEY_LEN));
        let long = |last| key(format!("{}{last}", "ä".repeat(MAX_KEY_LEN)));
        assert!(long("a").len() <= MAX_KEY_LEN && long("a").starts_with("ää"));
        assert_eq!(long("a"), long("a"));
        assert_ne!(long("a"), long("b"));
    }
}
