//! Who a client is: the name that its certificate gives it.
//!
//! A certificate that has been verified holds several names. An ordered list of rules says which of them
//! counts, the same for everybody, so that one client is one name wherever it is asked for.

mod certificate;
mod rules;

use std::{
    fmt,
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::OnceLock,
};

pub use self::{certificate::first as first_certificate, rules::Rules};

/// The longest name. A SPIFFE ID may be longer, but stands in each record of its client's builds.
pub const MAX_NAME_LEN: usize = 256;

/// A client by name. Two are the same if their names are, wherever these come from.
#[derive(Debug, Clone)]
pub struct Identity {
    name: String,
    source: &'static str,
    tag: u64,
}

impl Identity {
    /// The client that is called `name` by what `source` is a word for; an error if nobody can be called
    /// so.
    fn new(name: &str, source: &'static str) -> Result<Self, NoName> {
        if name.len() > MAX_NAME_LEN {
            return Err(NoName::TooLong(source));
        }
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            return Err(NoName::Unreadable(source));
        }
        Ok(Self { name: name.to_owned(), source, tag: tag(name) })
    }

    /// The name as it stands in the certificate, for comparing. To show it, use `Display`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number for the name, to be compared where a name is too long: the same as long as the process lives, and
    /// nobody can choose a name that has another's.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The client called `name`, wherever it has that from.
    #[cfg(test)]
    pub fn named(name: &str) -> Self {
        Self::new(name, "common-name").expect("a name")
    }

    /// The word for where the name comes from.
    pub fn source(&self) -> &'static str {
        self.source
    }
}

fn tag(name: &str) -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    // Zero is whoever has no name.
    KEYS.get_or_init(RandomState::new).hash_one(name).max(1)
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Identity {}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl fmt::Display for Identity {
    /// Whoever wrote the certificate may have put anything into it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.escape_debug().fmt(f)
    }
}

/// Why a certificate gives no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// It cannot be read.
    #[error("the certificate cannot be read")]
    NotACertificate,
    /// No rule finds a name in it.
    #[error("the certificate has no {0} that a rule takes")]
    NoneFits(String),
    /// It has several where there must be one.
    #[error(
        "the certificate has {count} values of {source_word}, where one must say who the client is"
    )]
    Ambiguous {
        /// The word of the source.
        source_word: &'static str,
        /// How many there are.
        count: usize,
    },
    /// The name is too long to be kept.
    #[error("the certificate's {0} is longer than {MAX_NAME_LEN} bytes")]
    TooLong(&'static str),
    /// The name is empty or has characters that nobody sees.
    #[error("the certificate's {0} is empty or has control characters")]
    Unreadable(&'static str),
}

#[cfg(test)]
mod tests;
