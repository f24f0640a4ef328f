//! The `[[identity]]` tables, which say which name of a certificate counts.

use toml::{Table, Value};

use super::{
    Identity, NoName,
    certificate::{Certificate, Source},
};
use crate::{label, rules};

/// The most rules. A person cannot keep more of them in order.
const MAX_RULES: usize = 64;

/// The words for these tables in error texts.
const KIND: rules::Kind =
    rules::Kind { from: "the place of a name in a certificate", finds: "name", matches_all: true };

/// A source of names, and the part of its value that counts.
type Rule = rules::Rule<Source>;

/// The first name in `certificate` that the rule matches.
fn name(rule: &Rule, certificate: &Certificate<'_>) -> Result<Option<String>, NoName> {
    let values = certificate.values(rule.source)?;
    Ok(values.into_iter().find_map(|value| rule.part(value)))
}

/// The ordered rules. The first one that finds a name decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    /// The SPIFFE ID or, without one, the common name.
    fn default() -> Self {
        Self([Source::Spiffe, Source::CommonName].map(Rule::all).into())
    }
}

impl Rules {
    /// The identity in the verified certificate `leaf`, which is in DER.
    ///
    /// # Errors
    /// The certificate contains no name, or leaves open which name counts.
    pub fn identify(&self, leaf: &[u8]) -> Result<Identity, NoName> {
        let certificate = Certificate::read(leaf)?;
        for rule in &self.0 {
            if let Some(name) = name(rule, &certificate)? {
                return Identity::new(&name, rule.source.label());
            }
        }
        let mut sources: Vec<&str> = self.0.iter().map(|rule| rule.source.label()).collect();
        sources.dedup();
        Err(NoName::NoneFits(sources.join(" or ")))
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
                            rule.source.label()
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
            let mut table = Table::from_iter([("from".to_owned(), rule.source.label().into())]);
            table.extend(rule.pattern().map(|pattern| ("regex".to_owned(), pattern.into())));
            Value::Table(table)
        };
        Value::Array(self.0.iter().map(table).collect())
    }
}

/// Reads `{ from = "WORD", regex = "…" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    let Value::Table(table) = entry else { return Err("must be a table".to_owned()) };
    Rule::read(table, &KIND, |from| label::parse(Source::ALL, from))
}
