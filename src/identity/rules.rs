//! Which name of a certificate counts: the `[[identity]]` tables.

use toml::{Table, Value};

use super::{
    Identity, NoName,
    certificate::{Certificate, Source},
};
use crate::rules;

/// More rules than a person can order hide a mistake.
const MAX_RULES: usize = 64;

/// What the tables are about.
const KIND: rules::Kind =
    rules::Kind { from: "the place of a name in a certificate", finds: "name", matches_all: true };

/// One place of a name, and what of it counts.
type Rule = rules::Rule<Source>;

/// The name in the first value of `certificate` that fits.
fn name(rule: &Rule, certificate: &Certificate<'_>) -> Result<Option<String>, NoName> {
    let values = certificate.values(rule.source)?;
    Ok(values.into_iter().find_map(|value| rule.part(value)))
}

/// The ordered rules: the first that finds a name decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    /// A SPIFFE ID, else the common name.
    fn default() -> Self {
        Self([Source::Spiffe, Source::CommonName].map(Rule::all).into())
    }
}

impl Rules {
    /// Whose certificate `leaf` is, given that it has been verified; `leaf` is in DER.
    ///
    /// # Errors
    /// It names nobody, or leaves open whom.
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

    /// Reads the `[[identity]]` tables; each problem begins with the key it is about.
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

    /// The tables that give these rules.
    pub fn to_value(&self) -> Value {
        let table = |rule: &Rule| {
            let mut table = Table::from_iter([("from".to_owned(), rule.source.label().into())]);
            table.extend(rule.pattern().map(|pattern| ("regex".to_owned(), pattern.into())));
            Value::Table(table)
        };
        Value::Array(self.0.iter().map(table).collect())
    }
}

/// `{ from = "WORD", regex = "…" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    let Value::Table(table) = entry else { return Err("must be a table".to_owned()) };
    Rule::read(table, &KIND, |from| {
        let source = Source::ALL.into_iter().find(|source| source.label() == from);
        source.ok_or_else(|| {
            let words = Source::ALL.map(Source::label).join(", ");
            format!("`{from}` is not one of {words}")
        })
    })
}
