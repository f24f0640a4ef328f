//! The problems of a configuration, in the words for a person.

use std::fmt;

use super::origins::Origins;

/// The longest problem, in characters: a problem quotes what may be anything.
const MAX_PROBLEM_LEN: usize = 1000;

/// All that is wrong with a configuration; one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// Problems that each begin with the key that they are about. The origin of the key is added to each.
    pub(super) fn new(problems: &[String], origins: &Origins<'_>) -> Self {
        Self(problems.iter().map(|problem| shown(problem, origins)).collect())
    }
}

/// The problem on one line of bounded length, followed by where its key was given.
fn shown(problem: &str, origins: &Origins<'_>) -> String {
    let key = problem.split_once(": ").map_or("", |(key, _text)| key);
    let origin = origins.of(key).map(|origin| format!(" ({origin})")).unwrap_or_default();
    let mut line: String = problem.chars().take(MAX_PROBLEM_LEN).collect();
    if line.len() < problem.len() {
        line.push('…');
    }
    line.chars().chain(origin.chars()).flat_map(escaped).collect()
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escape.into_iter().flatten().chain(plain)
}
