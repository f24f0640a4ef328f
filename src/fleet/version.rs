//! Versions of daemons and their order.

use std::{cmp::Ordering, fmt, sync::Arc};

/// The most characters of a version that are shown. A daemon may send a text of any length.
const MAX_LEN: usize = 64;

/// The version that a daemon reports.
///
/// Versions are ordered by age, the oldest first. A text that names no release counts as the newest, because such a
/// daemon was built from current source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    text: Arc<str>,
    release: Option<[u32; 3]>,
}

impl Version {
    /// The first release whose daemons know `maxUsedSpace` and `minFreeSpace` of a prune.
    pub const SPACE_LIMITS: [u32; 3] = [0, 17, 0];

    /// The first release whose daemons know limits and filters of the build history.
    pub const HISTORY_LIMITS: [u32; 3] = [0, 20, 0];

    /// Parses the version that a daemon reports as `text`, such as `v0.32.2`, `v0.17.0-rc1` or `0.0.0+unknown`.
    pub fn new(text: &str) -> Self {
        let text: String = text.chars().filter(|char| !char.is_control()).take(MAX_LEN).collect();
        let release = release(&text).filter(|release| *release != [0; 3]);
        let text = if text.is_empty() { "unknown".to_owned() } else { text };
        Self { text: text.into(), release }
    }

    /// The version of a daemon that cannot be asked for it, because Info came with v0.11.
    pub fn before_info() -> Self {
        Self { text: "below v0.11".into(), release: Some([0, 10, 0]) }
    }

    /// The text that the daemon reported.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the version is known to be older than `release`.
    pub fn is_before(&self, release: [u32; 3]) -> bool {
        self.release.is_some_and(|own| own < release)
    }
}

fn release(text: &str) -> Option<[u32; 3]> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut numbers = text.split(['-', '+']).next()?.split('.').map(str::parse);
    let release = [numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?];
    numbers.next().is_none().then_some(release)
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let age = |version: &Self| version.release.unwrap_or([u32::MAX; 3]);
        age(self).cmp(&age(other)).then_with(|| self.text.cmp(&other.text))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_ordered_by_release_and_not_by_text() {
        let sorted = ["v0.9.3", "v0.12.5", "0.16.0", "v0.17.0-rc1", "v0.32.2", "v0.0.0+unknown"];
        let mut versions: Vec<_> = sorted.iter().rev().map(|text| Version::new(text)).collect();
        versions.sort();
        assert_eq!(versions.iter().map(Version::as_str).collect::<Vec<_>>(), sorted);
    }

    #[test]
    fn only_what_is_known_to_be_older_is() {
        for (text, before) in [
            ("v0.16.0", true),
            ("v0.12.5-docker.1", true),
            ("v0.17.0-rc1", false),
            ("v0.32.2", false),
            ("v0.0.0+unknown", false),
            ("", false),
            ("master", false),
        ] {
            assert_eq!(Version::new(text).is_before(Version::SPACE_LIMITS), before, "{text}");
        }
        assert!(Version::before_info().is_before(Version::SPACE_LIMITS));
        assert_eq!(Version::new("").as_str(), "unknown");
    }

    proptest! {
        #[test]
        fn whatever_a_daemon_says_is_short_and_printable(text in "\\PC{0,200}|.{0,200}") {
            let version = Version::new(&text);
            prop_assert!(version.as_str().chars().count() <= MAX_LEN);
            prop_assert!(!version.as_str().chars().any(char::is_control));
        }
    }
}
