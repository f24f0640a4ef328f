//! The affinity key: what two builds of one project have in common, wherever they run.
//!
//! Left out on purpose: tags, commits, build arguments' values, paths of a checkout and random names,
//! which differ between jobs; target and platform too unless the rules ask for them, for the targets of
//! one project share stages.

mod facts;
mod normal;
pub mod rules;
pub mod shared_keys;
mod sources;

use twox_hash::XxHash3_64;

pub use self::{facts::Facts, rules::Rules};

/// The longest key, in bytes: it stands in each build's log record and in the status.
const MAX_KEY_LEN: usize = 256;

/// A key and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityKey {
    /// The normalised text that is hashed.
    pub key: String,
    /// The source's word in logs and metrics.
    pub source: &'static str,
}

impl AffinityKey {
    /// A key from `source`. Of one that is too long the beginning stays, and a digest that tells it from
    /// the others which begin like it.
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
