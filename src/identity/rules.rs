//! Which name of a certificate counts: the `[[identity]]` tables.

use regex::{Regex, RegexBuilder};
use toml::{Table, Value};

use super::{
    Identity, NoName,
    certificate::{Certificate, Source},
};

/// Longer patterns are no part of a name any more.
const MAX_PATTERN_LEN: usize = 1024;

/// Memory of one compiled pattern, in bytes. Matching takes time linear in the value in any case.
const MAX_PATTERN_SIZE: usize = 1 << 20;

/// More rules than a person can order hide a mistake.
const MAX_RULES: usize = 64;

/// One place of a name, and what of it counts.
#[derive(Debug, Clone)]
struct Rule {
    source: Source,
    /// Has to match all of a value; its group, if it has one, is the name.
    regex: Option<(String, Regex)>,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        let pattern = |rule: &Self| rule.regex.as_ref().map(|(pattern, _)| pattern.clone());
        self.source == other.source && pattern(self) == pattern(other)
    }
}

impl Rule {
    /// The name in the first value that fits.
    fn name(&self, certificate: &Certificate<'_>) -> Result<Option<String>, NoName> {
        let values = certificate.values(self.source)?;
        Ok(values.into_iter().find_map(|value| self.part(value)))
    }

    fn part(&self, value: String) -> Option<String> {
        let Some((_, regex)) = &self.regex else { return Some(value) };
        let captures = regex.captures(&value)?;
        let part = captures.get(1).or_else(|| captures.get(0))?;
        Some(part.as_str().to_owned())
    }
}

/// The ordered rules: the first that finds a name decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules(Vec<Rule>);

impl Default for Rules {
    /// A SPIFFE ID, else the common name.
    fn default() -> Self {
        let rule = |source| Rule { source, regex: None };
        Self([Source::Spiffe, Source::CommonName].map(rule).into())
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
            if let Some(name) = rule.name(&certificate)? {
                return Identity::new(&name, rule.source.label());
            }
        }
        let mut sources: Vec<&str> = self.0.iter().map(|rule| rule.source.label()).collect();
        sources.dedup();
        Err(NoName::NoneFits(sources.join(" or ")))
    }

    /// Reads the `[[identity]]` tables; each problem begins with the key it is about.
    pub fn from_value(value: Value, path: &str, problems: &mut Vec<String>) -> Self {
        let Value::Array(entries) = value else {
            problems.push(format!("{path}: must be a list of tables, as [[{path}]]"));
            return Self::default();
        };
        if entries.is_empty() || entries.len() > MAX_RULES {
            problems
                .push(format!("{path}: must be 1 to {MAX_RULES} tables, found {}", entries.len()));
            return Self::default();
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            match read_rule(entry) {
                Err(problem) => problems.push(format!("{path}[{index}]: {problem}")),
                Ok(rule) => {
                    let takes_all =
                        |earlier: &Rule| earlier.source == rule.source && earlier.regex.is_none();
                    if rules.iter().any(|earlier| takes_all(earlier) || *earlier == rule) {
                        problems.push(format!(
                            "{path}[{index}]: a rule before takes each `{}` that this one would, so this one never \
                             counts",
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
            if let Some((pattern, _)) = &rule.regex {
                table.insert("regex".to_owned(), pattern.clone().into());
            }
            Value::Table(table)
        };
        Value::Array(self.0.iter().map(table).collect())
    }
}

/// `{ from = "WORD", regex = "…" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    let Value::Table(mut table) = entry else { return Err("must be a table".to_owned()) };
    let Some(Value::String(from)) = table.remove("from") else {
        return Err("needs `from`, the place of a name in a certificate".to_owned());
    };
    let source = Source::ALL.into_iter().find(|source| source.label() == from);
    let source = source.ok_or_else(|| {
        let words = Source::ALL.map(Source::label).join(", ");
        format!("`{from}` is not one of {words}")
    })?;
    let regex = match table.remove("regex") {
        None => None,
        Some(Value::String(pattern)) => Some((pattern.clone(), compile(&pattern)?)),
        Some(_) => return Err("`regex` must be a string".to_owned()),
    };
    match table.keys().next() {
        Some(unknown) => Err(format!("unknown key `{unknown}`")),
        None => Ok(Rule { source, regex }),
    }
}

/// A pattern for the whole of a value: one that fits somewhere in the middle would let others choose what
/// stands around it.
fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN_LEN {
        return Err(format!("`regex` is longer than {MAX_PATTERN_LEN} bytes"));
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_SIZE)
            .dfa_size_limit(MAX_PATTERN_SIZE)
            .build()
    };
    // Alone first: what it says of a mistake is about what was written.
    let regex = build(pattern).and_then(|_alone| build(&format!(r"\A(?:{pattern})\z"))).map_err(
        |error| {
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            format!("`regex` is not valid: {}", last.trim_start_matches("error: "))
        },
    )?;
    match regex.captures_len() - 1 {
        0 | 1 => Ok(regex),
        groups => Err(format!(
            "`regex` has {groups} groups: it is not clear which is the name, write (?:…) for the others"
        )),
    }
}
