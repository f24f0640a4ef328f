//! The `[[identity]]` tables, which say which name of a certificate counts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use toml::{Table, Value};

use super::{
    Identity, NoName,
    certificate::{Certificate, Source},
};
use crate::{label, rules, tls::Authority};

/// The most rules. A person cannot keep more of them in order.
const MAX_RULES: usize = 64;

/// The words for these tables in error texts.
const KIND: rules::Kind =
    rules::Kind { from: "the place of a name in a certificate", finds: "name", matches_all: true };

/// A source of names, the part of its value that counts, and whose certificates the rule is about.
#[derive(Debug, Clone)]
struct Rule {
    name: rules::Rule<Source>,
    /// The CA certificates, with the path of their file. `None` for a rule about every certificate that the port trusts.
    authority: Option<(PathBuf, Arc<Authority>)>,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.ca() == other.ca()
    }
}

impl Rule {
    /// The path of the file with the CA certificates.
    fn ca(&self) -> Option<&Path> {
        self.authority.as_ref().map(|(path, _authority)| path.as_path())
    }

    /// Whether the rule is about the first certificate of `chain`.
    fn covers(&self, chain: &[&[u8]]) -> bool {
        let authority = self.authority.as_ref();
        authority.is_none_or(|(_path, authority)| authority.has_signed(chain))
    }

    /// The first name in `certificate` that the rule matches.
    fn find(&self, certificate: &Certificate<'_>) -> Result<Option<String>, NoName> {
        let values = certificate.values(self.name.source)?;
        Ok(values.into_iter().find_map(|value| self.name.part(value)))
    }

    /// Whether the rule `later` never counts after this one.
    fn hides(&self, later: &Self) -> bool {
        let covers_all = self.authority.is_none() || self.ca() == later.ca();
        covers_all && self.name.hides(&later.name)
    }
}

/// The ordered rules. The first one that finds a name decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    /// The SPIFFE ID or, without one, the common name.
    fn default() -> Self {
        let whole = |source| Rule { name: rules::Rule::all(source), authority: None };
        Self([Source::Spiffe, Source::CommonName].map(whole).into())
    }
}

impl Rules {
    /// The identity in the first certificate of `chain`, which is verified. The others stand between that one and its
    /// CA. All are in DER.
    ///
    /// # Errors
    /// The certificate contains no name, or leaves open which name counts.
    pub fn identify<C: AsRef<[u8]>>(&self, chain: &[C]) -> Result<Identity, NoName> {
        let chain: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
        let certificate = Certificate::read(chain.first().ok_or(NoName::NotACertificate)?)?;
        for rule in self.0.iter().filter(|rule| rule.covers(&chain)) {
            if let Some(name) = rule.find(&certificate)? {
                return Identity::new(&name, rule.name.source.label());
            }
        }
        let mut sources: Vec<_> = self.0.iter().map(|rule| rule.name.source.label()).collect();
        sources.dedup();
        Err(NoName::NoneFits(sources.join(" or ")))
    }

    /// The CA certificates of all rules that have some.
    pub fn authorities(&self) -> impl Iterator<Item = &Arc<Authority>> {
        self.0.iter().filter_map(|rule| rule.authority.as_ref().map(|(_path, authority)| authority))
    }

    /// Reads the `[[identity]]` tables. Each problem begins with the key that it is about.
    pub fn from_value(value: Value, path: &str, problems: &mut Vec<String>) -> Self {
        let Some(entries) = rules::tables(value, path, MAX_RULES, problems) else {
            return Self::default();
        };
        let mut rules: Vec<Rule> = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            match read_rule(entry) {
                Err(problem) => problems.push(format!("{path}[{index}]: {problem}")),
                Ok(rule) => {
                    if rules.iter().any(|earlier| earlier.hides(&rule)) {
                        problems.push(format!(
                            "{path}[{index}]: unreachable: an earlier entry already matches every value of `{}`",
                            rule.name.source.label()
                        ));
                    }
                    rules.push(rule);
                }
            }
        }
        Self(rules)
    }

    /// The tables that these rules can be read from.
    pub fn to_value(&self) -> Value {
        let table = |rule: &Rule| {
            let from = rule.name.source.label();
            let mut table = Table::from_iter([("from".to_owned(), from.into())]);
            table.extend(rule.name.pattern().map(|pattern| ("regex".to_owned(), pattern.into())));
            table
                .extend(rule.ca().map(|path| ("ca".to_owned(), path.display().to_string().into())));
            Value::Table(table)
        };
        Value::Array(self.0.iter().map(table).collect())
    }
}

/// Reads `{ from = "WORD", regex = "…", ca = "FILE" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    let Value::Table(mut table) = entry else { return Err("must be a table".to_owned()) };
    let authority = match table.remove("ca") {
        None => None,
        Some(Value::String(path)) => {
            let path = PathBuf::from(path);
            let authority = Authority::load(&path).map_err(|error| format!("`ca`: {error}"))?;
            Some((path, Arc::new(authority)))
        }
        Some(_) => return Err("`ca` must be a string".to_owned()),
    };
    let name = rules::Rule::read(table, &KIND, |from| label::parse(Source::ALL, from))?;
    Ok(Rule { name, authority })
}
