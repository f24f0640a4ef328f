//! The `[affinity]` table: the sources of a key, their order, and which part of a value counts.

use std::fmt;

use toml::{Table, Value};

use super::{AffinityKey, Facts, sources};
use crate::rules;

/// Metadata of a Solve in which a gateway in front of the proxy may name the key.
pub const HINT_HEADER: &str = "buildkit-lb-key";

/// The most rules. A list with more rules than there are sources contains a mistake.
const MAX_RULES: usize = 32;

/// A source of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Hint,
    Vcs,
    Context,
    Image,
    CacheRef,
    Client,
    SharedKey,
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
    fn parse(text: &str) -> Result<Self, String> {
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

/// What the entries of the list are about.
const KIND: rules::Kind =
    rules::Kind { from: "the word of a source", finds: "key", matches_all: false };

/// One source, and the part of its value that counts.
type Rule = rules::Rule<Source>;

/// The key that `rule` gives.
fn key(rule: &Rule, facts: &Facts) -> Option<String> {
    let value = rule.source.read(facts)?;
    // A pattern may match nothing of a value.
    rule.part(value).filter(|part| rule.pattern().is_none() || !part.is_empty())
}

/// The sources in order. The first source that has a value for a build gives its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// Frontend options that are added to each key, such as `target` or `platform`.
    include: Vec<String>,
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

    /// Parses the `[affinity]` table. Each problem begins with the path of its key.
    pub fn from_table(table: Table, path: &str, problems: &mut Vec<String>) -> Self {
        let mut rules = Self::default();
        for (key, value) in table {
            let path = format!("{path}.{key}");
            match key.as_str() {
                "sources" => rules.rules = read_sources(value, &path, problems),
                "include" => rules.include = read_include(value, &path, problems),
                _ => problems.push(format!("{path}: unknown key")),
            }
        }
        rules
    }

    /// The table that parses to these rules.
    pub fn to_table(&self) -> Table {
        let source = |rule: &Rule| match rule.pattern() {
            None => Value::String(rule.source.to_string()),
            Some(pattern) => Value::Table(Table::from_iter([
                ("from".to_owned(), rule.source.to_string().into()),
                ("regex".to_owned(), pattern.into()),
            ])),
        };
        let sources: Vec<_> = self.rules.iter().map(source).collect();
        Table::from_iter([
            ("sources".to_owned(), Value::Array(sources)),
            ("include".to_owned(), self.include.clone().into()),
        ])
    }
}

fn read_sources(value: Value, path: &str, problems: &mut Vec<String>) -> Vec<Rule> {
    let Value::Array(entries) = value else {
        problems.push(format!("{path}: must be a list of sources"));
        return Vec::new();
    };
    if entries.is_empty() || entries.len() > MAX_RULES {
        problems.push(format!(
            "{path}: must have 1 to {MAX_RULES} sources, found {}; builds without a key are placed by load",
            entries.len()
        ));
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let rule = match read_rule(entry) {
            Ok(rule) => rule,
            Err(problem) => {
                problems.push(format!("{path}: {problem}"));
                continue;
            }
        };
        if rules.iter().any(|earlier| earlier.hides(&rule)) {
            problems.push(format!(
                "{path}: unreachable: an earlier entry already matches every value of `{}`",
                rule.source
            ));
        }
        rules.push(rule);
    }
    rules
}

/// `"WORD"` or `{ from = "WORD", regex = "…" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    match entry {
        Value::String(word) => Ok(Rule::all(Source::parse(&word)?)),
        Value::Table(table) => Rule::read(table, &KIND, Source::parse),
        other => Err(format!("must be a string or a table, found {}", other.type_str())),
    }
}

fn read_include(value: Value, path: &str, problems: &mut Vec<String>) -> Vec<String> {
    let names: Vec<String> = match value.try_into() {
        Ok(names) => names,
        Err(_untyped) => {
            problems.push(format!("{path}: must be a list of strings"));
            return Vec::new();
        }
    };
    for (index, name) in names.iter().enumerate() {
        if !["target", "platform"].contains(&name.as_str()) {
            problems.push(format!("{path}[{index}]: `{name}` is not one of target or platform"));
        } else if names[..index].contains(name) {
            problems.push(format!("{path}[{index}]: `{name}` is given twice"));
        }
    }
    names
}

#[cfg(test)]
mod tests;
