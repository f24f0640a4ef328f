//! What a client may do: the first `[[access]]` rule that names the client decides.
//!
//! These are pure functions of the name of a client and of its request. Rules know clients only by name. Without
//! certificates all clients are the same one, the client without a name.

mod pattern;
mod quota;
mod reader;
mod solve;

use std::fmt;

use crate::{client::Weight, identity::Identity, label::label_set};

pub use self::{
    pattern::Pattern,
    quota::{Quota, Running},
};

label_set! {
    /// The requests to daemons that a rule can forbid as a whole.
    pub enum Operation {
        /// Running a build.
        Build = "build",
        /// Deleting the build caches of all clients.
        Prune = "prune",
        /// Listing the build caches of all clients.
        DiskUsage = "disk-usage",
    }
}

impl Operation {
    /// What the client does, as a part of an error text.
    pub fn described(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Prune => "delete build caches",
            Self::DiskUsage => "list build caches",
        }
    }
}

label_set! {
    /// The clients whose records or blobs a client may see.
    pub enum Reach {
        /// Records or blobs of no client.
        None = "none",
        /// Only those of the client itself.
        Own = "own",
        /// Those of all clients.
        All = "all",
    }
}

/// What a client is not allowed to do. The text names the client and the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{client} may not {what}")]
pub struct Denied {
    client: String,
    what: String,
}

/// The patterns of allowed names. `None` allows all names.
type Allowed = Option<Vec<Pattern>>;

/// What the clients that a rule names may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    operations: Vec<Operation>,
    history: Reach,
    content: Reach,
    pools: Allowed,
    entitlements: Vec<Pattern>,
    exporters: Allowed,
    cache_exporters: Allowed,
    push: Allowed,
    max_builds: Option<usize>,
    weight: Weight,
}

impl Grant {
    /// The grant if there are no rules: everything except what belongs to other clients.
    const OPEN: Self = Self {
        operations: Vec::new(),
        history: Reach::Own,
        content: Reach::Own,
        pools: None,
        entitlements: Vec::new(),
        exporters: None,
        cache_exporters: None,
        push: None,
        max_builds: None,
        weight: Weight::ONE,
    };

    fn open() -> Self {
        let operations = Operation::ALL.into();
        Self { operations, entitlements: vec![Pattern::any()], ..Self::OPEN }
    }

    /// The grant of clients that no rule names: nothing.
    fn closed() -> Self {
        Self { history: Reach::None, content: Reach::None, pools: Some(Vec::new()), ..Self::OPEN }
    }

    /// Whose build records the client may see, change and delete.
    pub fn history(&self) -> Reach {
        self.history
    }

    /// Whose blobs the client may read.
    pub fn content(&self) -> Reach {
        self.content
    }

    /// How many builds of the client may run at once. `None` if there is no limit.
    pub fn max_builds(&self) -> Option<usize> {
        self.max_builds
    }

    /// The share of the slots that the client gets in the queue, relative to other clients.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Whether `operation` is allowed.
    pub fn allows(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    /// The words of the allowed operations.
    fn operation_labels(&self) -> Vec<&'static str> {
        self.operations.iter().map(|operation| operation.label()).collect()
    }

    /// Whether the client may use the pool `name`.
    pub fn allows_pool(&self, name: &str) -> bool {
        allowed(&self.pools, name)
    }
}

impl fmt::Display for Grant {
    /// Writes a line for each setting, in the words of the settings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |key: &str, text: &str| writeln!(f, "{key:<16} {text}");
        line("operations", &listed(&self.operation_labels()))?;
        line("history", self.history.label())?;
        line("content", self.content.label())?;
        line("entitlements", &listed(&texts(&self.entitlements)))?;
        for (key, list) in self.lists() {
            line(key, &list.as_ref().map_or("any".to_owned(), |list| listed(&texts(list))))?;
        }
        match self.max_builds {
            Some(most) => line("max-builds", &most.to_string())?,
            None => line("max-builds", "no limit")?,
        }
        line("weight", &self.weight.to_string())
    }
}

fn texts(patterns: &[Pattern]) -> Vec<&str> {
    patterns.iter().map(Pattern::text).collect()
}

fn listed(texts: &[&str]) -> String {
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

fn allowed(patterns: &Allowed, text: &str) -> bool {
    patterns.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| pattern.fits(text)))
}

/// A rule: the clients that it names, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    clients: Vec<Pattern>,
    /// Whether the rule names clients without a name.
    anonymous: bool,
    grant: Grant,
}

impl Rule {
    fn names(&self, client: Option<&Identity>) -> bool {
        match client {
            Some(client) => self.clients.iter().any(|pattern| pattern.fits(client.name())),
            None => self.anonymous,
        }
    }
}

/// The ordered rules. The first one that names a client decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// The grant of clients that no rule names.
    otherwise: Grant,
}

impl Default for Rules {
    fn default() -> Self {
        Self { rules: Vec::new(), otherwise: Grant::open() }
    }
}

impl Rules {
    /// What `client` may do.
    pub fn grant(&self, client: Option<&Identity>) -> &Grant {
        let rule = self.rules.iter().find(|rule| rule.names(client));
        rule.map_or(&self.otherwise, |rule| &rule.grant)
    }

    /// The number of the rule that names `client`, counted from 1. `None` if no rule does.
    pub fn number(&self, client: Option<&Identity>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.names(client)).map(|index| index + 1)
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The names of the pools that occur in the rules.
    pub fn pools(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| rule.grant.pools.iter().flatten()).map(Pattern::text)
    }
}

/// The error for a client that may not do `what`.
pub fn denied(client: Option<&Identity>, what: impl Into<String>) -> Denied {
    Denied { client: name(client), what: what.into() }
}

/// The name of a client in texts for that client.
pub fn name(client: Option<&Identity>) -> String {
    match client {
        Some(client) => format!("client {client}"),
        None => "a client without a certificate".to_owned(),
    }
}

#[cfg(test)]
mod tests;
