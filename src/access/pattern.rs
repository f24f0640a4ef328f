//! A pattern for names, in which `*` stands for any text.

/// The longest pattern in bytes. Names and references are shorter.
const MAX_LEN: usize = 512;

/// A text in which each `*` stands for any characters, or for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// The pattern is empty, or longer than any name.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.len() {
            1..=MAX_LEN => Ok(Self(text.to_owned())),
            _ => Err(format!("must be text of 1 to {MAX_LEN} bytes")),
        }
    }

    /// The pattern that matches everything.
    pub(super) fn any() -> Self {
        Self("*".to_owned())
    }

    /// The pattern as it was written.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether the pattern matches all of `text`. The time is linear in the text for each `*`.
    pub fn fits(&self, text: &str) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else { return self.0 == text };
        let Some(mut left) = text.strip_prefix(start) else { return false };
        let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        // The earliest position of each part leaves the most text for the next part.
        for part in middle.split('*') {
            match left.find(part) {
                Some(at) => left = &left[at + part.len()..],
                None => return false,
            }
        }
        left.ends_with(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    #[test]
    fn a_star_is_anything_and_all_else_is_itself() {
        let fits = |pattern: &str, text: &str| Pattern::parse(pattern).expect("valid").fits(text);
        for (pattern, fitting, other) in [
            ("team-a", vec!["team-a"], vec!["team-ab", "xteam-a", "", "TEAM-A"]),
            (
                "registry.example/a/*",
                vec!["registry.example/a/b/c", "registry.example/a/"],
                vec!["registry.example/ab"],
            ),
            ("*", vec!["", "x"], vec![]),
            ("a*b*c", vec!["abc", "axbxbxc"], vec!["ab", "acb", "abcd"]),
            ("ab*ba", vec!["abba", "abxba"], vec!["aba"]),
        ] {
            for text in fitting {
                assert!(fits(pattern, text), "{pattern} {text}");
            }
            for text in other {
                assert!(!fits(pattern, text), "{pattern} {text}");
            }
        }
        assert!(Pattern::parse("").is_err() && Pattern::parse(&"x".repeat(MAX_LEN + 1)).is_err());
    }

    proptest! {
        #[test]
        fn it_fits_what_the_same_regular_expression_does(pattern in "[ab*]{1,8}", text in "[ab]{0,10}") {
            let regex = Regex::new(&format!("^{}$", pattern.replace('*', ".*"))).expect("valid");
            let fits = Pattern::parse(&pattern).expect("valid").fits(&text);
            prop_assert_eq!(fits, regex.is_match(&text), "{} {}", pattern, text);
        }
    }
}
