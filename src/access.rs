//! What a client may do: the first `[[access]]` rule that names it.
//!
//! Pure functions of a client's name and of what it asks for. A rule speaks of clients by their names, so without
//! certificates there is one client, the one without a name.

mod pattern;
mod quota;
mod reader;
mod solve;

use std::fmt;

use crate::identity::Identity;

pub use self::{
    pattern::Pattern,
    quota::{Quota, Running},
};

/// What is asked of daemons, beside what belongs to no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// To build.
    Build,
    /// To delete build caches.
    Prune,
    /// To list build caches.
    DiskUsage,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Build, Self::Prune, Self::DiskUsage];

    /// What a client does then, for a text.
    pub fn described(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Prune => "delete build caches",
            Self::DiskUsage => "list build caches",
        }
    }

    /// The word in settings.
    fn label(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Prune => "prune",
            Self::DiskUsage => "disk-usage",
        }
    }
}

/// Whose records or blobs a client may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nobody's.
    None,
    /// Its own.
    Own,
    /// Everybody's.
    All,
}

impl Reach {
    const ALL: [Self; 3] = [Self::None, Self::Own, Self::All];

    /// The word in settings and texts.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Own => "own",
            Self::All => "all",
        }
    }
}

/// What a client is not allowed; its text says what, and who.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{client} may not {what}")]
pub struct Denied {
    client: String,
    what: String,
}

/// Names that are allowed; `None` is all of them.
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
}

impl Grant {
    /// Where there are no rules: all but what is others'.
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
    };

    fn open() -> Self {
        let operations = Operation::ALL.into();
        Self { operations, entitlements: vec![Pattern::any()], ..Self::OPEN }
    }

    /// For those whom no rule names: nothing.
    fn closed() -> Self {
        Self { history: Reach::None, content: Reach::None, pools: Some(Vec::new()), ..Self::OPEN }
    }

    /// Whose build records may be seen, changed and deleted.
    pub fn history(&self) -> Reach {
        self.history
    }

    /// Whose blobs may be read.
    pub fn content(&self) -> Reach {
        self.content
    }

    /// How many builds may run at once.
    pub fn max_builds(&self) -> Option<usize> {
        self.max_builds
    }

    /// Whether `operation` is allowed.
    pub fn allows(&self, operation: Operation) -> bool {
        self.operations.contains(&operation)
    }

    /// The words of the operations that are allowed.
    fn operation_labels(&self) -> Vec<&'static str> {
        self.operations.iter().map(|operation| operation.label()).collect()
    }

    /// Whether anything is, in the pool of this name.
    pub fn allows_pool(&self, name: &str) -> bool {
        allowed(&self.pools, name)
    }
}

impl fmt::Display for Grant {
    /// A line for each thing, in the words of the settings.
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
            Some(most) => line("max-builds", &most.to_string()),
            None => line("max-builds", "no limit"),
        }
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

/// Whom a rule names, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    clients: Vec<Pattern>,
    /// It names those without a name.
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

/// The ordered rules: the first that names a client decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// What those may do whom no rule names.
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

    /// The number of the rule that names `client`, from 1.
    pub fn number(&self, client: Option<&Identity>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.names(client)).map(|index| index + 1)
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The names of pools that the rules speak of.
    pub fn pools(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| rule.grant.pools.iter().flatten()).map(Pattern::text)
    }
}

/// The error for a client that may not do `what`.
pub fn denied(client: Option<&Identity>, what: impl Into<String>) -> Denied {
    Denied { client: name(client), what: what.into() }
}

/// What a client is called in texts for itself.
pub fn name(client: Option<&Identity>) -> String {
    match client {
        Some(client) => format!("client {client}"),
        None => "a client without a certificate".to_owned(),
    }
}

#[cfg(test)]
mod tests;
