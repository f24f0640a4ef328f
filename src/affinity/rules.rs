//! The sources of a key, their order, and which part of a value counts.

use std::fmt;

use super::{AffinityKey, Facts, sources};
use crate::rules;

/// Metadata of a Solve in which a gateway in front of the proxy may name the key.
pub const HINT_HEADER: &str = "buildkit-lb-key";

/// A source of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// What the pipeline or a gateway names.
    Hint,
    /// The repository that buildx tells of.
    Vcs,
    /// The repository of a remote context.
    Context,
    /// The name of the image that the build makes.
    Image,
    /// The name of the cache that the build reads or writes.
    CacheRef,
    /// The client's address.
    Client,
    /// The directory that the Session's shared key begins with.
    SharedKey,
    /// The repositories or images that an LLB definition names.
    Definition,
    /// Any frontend option, by name.
    Opt(String),
}

/// The names of the sources in their default order, without `opt:NAME`. `client` is not in the default, because agents
/// are new each time or share one address.
const WORDS: [(&str, Source); 8] = [
    ("hint", Source::Hint),
    ("vcs", Source::Vcs),
    ("context", Source::Context),
    ("image", Source::Image),
    ("cache_ref", Source::CacheRef),
    ("client", Source::Client),
    ("shared_key", Source::SharedKey),
    ("definition", Source::Definition),
];

impl Source {
    /// The source of this name.
    ///
    /// # Errors
    /// A message with the names that there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("opt:").filter(|name| !name.is_empty()) {
            return Ok(Self::Opt(name.to_owned()));
        }
        let known = WORDS.iter().find(|(word, _)| *word == text);
        known.map(|(_, source)| source.clone()).ok_or_else(|| {
            let words: Vec<_> = WORDS.iter().map(|(word, _)| *word).collect();
            format!("`{text}` is not one of {} or opt:NAME", words.join(", "))
        })
    }

    /// The name in logs and metrics, from a closed set.
    fn label(&self) -> &'static str {
        if let Self::Opt(_) = self {
            return "opt";
        }
        WORDS.iter().find(|(_, source)| source == self).map_or("none", |(word, _)| word)
    }

    fn read(&self, facts: &Facts) -> Option<String> {
        match self {
            Self::Hint => sources::hint(facts),
            Self::Vcs => sources::vcs(facts),
            Self::Context => sources::context(facts),
            Self::Image => sources::image(facts),
            Self::CacheRef => sources::cache_ref(facts),
            Self::Client => sources::client(facts),
            Self::SharedKey => sources::shared_key(facts),
            Self::Definition => sources::definition(facts),
            Self::Opt(name) => sources::opt(facts, name),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opt(name) => write!(f, "opt:{name}"),
            other => f.write_str(other.label()),
        }
    }
}

/// One source, and the part of its value that counts.
pub type Rule = rules::Rule<Source>;

/// The key that `rule` gives.
fn key(rule: &Rule, facts: &Facts) -> Option<String> {
    let value = rule.source.read(facts)?;
    // A pattern may match nothing of a value.
    rule.part(value).filter(|part| rule.pattern().is_none() || !part.is_empty())
}

/// The sources in order. The first source that has a value for a build gives its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// One for each source, in order.
    pub rules: Vec<Rule>,
    /// Frontend options that are added to each key, such as `target` or `platform`.
    pub include: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        let default = WORDS.into_iter().filter(|(_, source)| *source != Source::Client);
        let rules = default.map(|(_, source)| Rule::all(source)).collect();
        Self { rules, include: Vec::new() }
    }
}

impl Rules {
    /// The key of a build, or `None` if no source has one.
    pub fn key(&self, facts: &Facts) -> Option<AffinityKey> {
        let found = |rule: &Rule| Some((key(rule, facts)?, rule.source.label()));
        let (mut key, source) = self.rules.iter().find_map(found)?;
        for name in &self.include {
            if let Some(value) = sources::opt(facts, name) {
                key = format!("{key}@{name}={value}");
            }
        }
        Some(AffinityKey::new(key, source))
    }

    /// Whether the shared key of a Session can be the key of a build.
    pub fn read_shared_key(&self) -> bool {
        self.rules.iter().any(|rule| rule.source == Source::SharedKey)
    }

    /// Whether a definition can give the key of a build.
    pub(super) fn read_definition(&self) -> bool {
        self.rules.iter().any(|rule| rule.source == Source::Definition)
    }

    /// Whether the frontend option `name` can give the key of a build.
    pub(super) fn read_option(&self, name: &str) -> bool {
        let asked = |rule: &Rule| matches!(&rule.source, Source::Opt(asked) if asked == name);
        sources::read_option(name)
            || self.rules.iter().any(asked)
            || self.include.iter().any(|included| included == name)
    }

    /// Whether the key of this build depends on the shared key of its Session.
    pub fn waits_for_shared_key(&self, facts: &Facts) -> bool {
        let decides = |rule: &&Rule| rule.source == Source::SharedKey || key(rule, facts).is_some();
        self.rules.iter().find(decides).is_some_and(|rule| rule.source == Source::SharedKey)
    }
}

#[cfg(test)]
mod tests;
