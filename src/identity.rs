//! The identity of a client: the name in its certificate.
//!
//! A verified certificate may contain several names. One ordered list of rules says which of them counts, for all
//! uses, so that a client has the same name everywhere.

mod certificate;
mod rules;

use std::{
    fmt,
    hash::{BuildHasher as _, Hash, Hasher, RandomState},
    sync::OnceLock,
};

pub use self::{certificate::chain as certificate_chain, rules::Rules};

/// The longest name in bytes. A SPIFFE ID may be longer, but each record of the client's builds contains the name.
pub const MAX_NAME_LEN: usize = 256;

/// The name of a client. Two identities are equal if their names are, whatever the sources of the names.
#[derive(Debug, Clone)]
pub struct Identity {
    name: String,
    source: &'static str,
    tag: u64,
}

impl Identity {
    /// The client with `name`, which was found in `source`.
    ///
    /// # Errors
    /// `name` cannot be the name of a client.
    fn new(name: &str, source: &'static str) -> Result<Self, NoName> {
        if name.len() > MAX_NAME_LEN {
            return Err(NoName::TooLong(source));
        }
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            return Err(NoName::Unreadable(source));
        }
        Ok(Self { name: name.to_owned(), source, tag: tag(name) })
    }

    /// The client that has a token and is called `name` in the file of tokens. `None` if nobody can be called so. Only a
    /// certificate has a SPIFFE ID.
    pub fn of_token(name: &str) -> Option<Self> {
        Self::new(name, "token").ok().filter(|_valid| !certificate::is_spiffe(name))
    }

    /// The name as it is in the certificate, for comparisons. Use `Display` to show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A number that stands for the name in comparisons, where the name is too long. It stays the same as long as
    /// the process lives, and nobody can choose a name with the number of another.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The client `name` from any source.
    #[cfg(test)]
    pub fn named(name: &str) -> Self {
        Self::new(name, "common-name").expect("a name")
    }

    /// The part of the certificate that contains the name.
    pub fn source(&self) -> &'static str {
        self.source
    }
}

fn tag(name: &str) -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    // Zero stands for clients without a name.
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
    /// Control characters are escaped, because the author of a certificate may have put anything into it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.escape_debug().fmt(f)
    }
}

/// Why a certificate gives no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// The certificate cannot be parsed.
    #[error("the certificate cannot be read")]
    NotACertificate,
    /// No rule finds a name in the certificate.
    #[error("the certificate has no {0} that a rule takes")]
    NoneFits(String),
    /// The certificate has several names of a kind of which there must be one.
    #[error(
        "the certificate has {count} values of {source_word}, where one must say who the client is"
    )]
    Ambiguous {
        /// The kind of the names.
        source_word: &'static str,
        /// The number of the names.
        count: usize,
    },
    /// The name is too long.
    #[error("the certificate's {0} is longer than {MAX_NAME_LEN} bytes")]
    TooLong(&'static str),
    /// The name is empty, or has control characters.
    #[error("the certificate's {0} is empty or has control characters")]
    Unreadable(&'static str),
}

#[cfg(test)]
mod tests;
