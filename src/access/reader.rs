//! Reads the `[[access]]` tables.

use toml::{Table, Value};

use super::{Allowed, Grant, Operation, Pattern, Reach, Rule, Rules, texts};
use crate::{client::Weight, label, rules};

/// The most rules. A person cannot keep more of them in order.
const MAX_RULES: usize = 1000;

/// The most patterns in one list.
const MAX_PATTERNS: usize = 1000;

/// The highest limit on builds. A proxy runs fewer.
const MAX_BUILDS: i64 = 100_000;

impl Rules {
    /// Reads the `[[access]]` tables. Each problem begins with the key that it is about.
    pub fn from_value(value: Value, path: &str, problems: &mut Vec<String>) -> Self {
        let Some(entries) = rules::tables(value, path, MAX_RULES, problems) else {
            return Self::default();
        };
        let mut rules = Vec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            match entry {
                Value::Table(table) => rules.push(read_rule(table, &path, problems)),
                other => {
                    problems.push(format!("{path}: must be a table, found {}", other.type_str()));
                }
            }
        }
        Self { rules, otherwise: Grant::closed() }
    }

    /// The tables that these rules can be read from. `None` if there are no rules.
    pub fn to_value(&self) -> Option<Value> {
        let tables = self.rules.iter().map(|rule| Value::Table(rule.to_table()));
        (!self.is_empty()).then(|| Value::Array(tables.collect()))
    }
}

fn read_rule(table: Table, path: &str, problems: &mut Vec<String>) -> Rule {
    let grant = Grant { operations: vec![Operation::Build], ..Grant::OPEN };
    let mut rule = Rule { clients: Vec::new(), anonymous: false, grant };
    for (key, value) in table {
        let path = format!("{path}.{key}");
        if let Err(problem) = rule.set(&key, value) {
            problems.push(format!("{path}: {problem}"));
        }
    }
    if rule.clients.is_empty() && !rule.anonymous {
        problems.push(format!("{path}: names nobody, neither by `clients` nor by `anonymous`"));
    }
    rule
}

impl Rule {
    fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        let grant = &mut self.grant;
        match key {
            "clients" => self.clients = patterns(value)?,
            "anonymous" => self.anonymous = value.as_bool().ok_or("must be true or false")?,
            "operations" => grant.operations = operations(value)?,
            "history" => grant.history = reach(&value)?,
            "content" => grant.content = reach(&value)?,
            "pools" => grant.pools = Some(patterns(value)?),
            "entitlements" => grant.entitlements = patterns(value)?,
            "exporters" => grant.exporters = Some(patterns(value)?),
            "cache-exporters" => grant.cache_exporters = Some(patterns(value)?),
            "push" => grant.push = Some(patterns(value)?),
            "max-builds" => grant.max_builds = Some(count(&value)?),
            "weight" => grant.weight = weight(&value)?,
            _ => return Err("unknown key".to_owned()),
        }
        Ok(())
    }

    fn to_table(&self) -> Table {
        let grant = &self.grant;
        let mut table = Table::from_iter([
            ("clients".to_owned(), texts(&self.clients).into()),
            ("anonymous".to_owned(), self.anonymous.into()),
            ("operations".to_owned(), grant.operation_labels().into()),
            ("history".to_owned(), grant.history.label().into()),
            ("content".to_owned(), grant.content.label().into()),
            ("entitlements".to_owned(), texts(&grant.entitlements).into()),
            ("weight".to_owned(), i64::from(grant.weight.get()).into()),
        ]);
        for (key, list) in grant.lists() {
            table.extend(list.as_ref().map(|list| (key.to_owned(), texts(list).into())));
        }
        let most = grant.max_builds.and_then(|most| i64::try_from(most).ok());
        table.extend(most.map(|most| ("max-builds".to_owned(), most.into())));
        table
    }
}

impl Grant {
    /// The lists that allow everything if they are missing, with their keys.
    pub(super) fn lists(&self) -> [(&'static str, &Allowed); 4] {
        [
            ("pools", &self.pools),
            ("exporters", &self.exporters),
            ("cache-exporters", &self.cache_exporters),
            ("push", &self.push),
        ]
    }
}

fn strings(value: Value) -> Result<Vec<String>, String> {
    let list: Vec<String> =
        value.try_into().map_err(|_untyped| "must be a list of strings".to_owned())?;
    match list.len() {
        ..=MAX_PATTERNS => Ok(list),
        len => Err(format!("must have at most {MAX_PATTERNS} entries, found {len}")),
    }
}

fn patterns(value: Value) -> Result<Vec<Pattern>, String> {
    strings(value)?.iter().map(|text| Pattern::parse(text)).collect()
}

fn operations(value: Value) -> Result<Vec<Operation>, String> {
    strings(value)?.iter().map(|text| label::parse(Operation::ALL, text)).collect()
}

fn reach(value: &Value) -> Result<Reach, String> {
    let known = value.as_str().and_then(|text| label::parse(Reach::ALL, text).ok());
    known.ok_or_else(|| format!("must be one of {}", label::list(Reach::ALL)))
}

fn weight(value: &Value) -> Result<Weight, String> {
    let weight = value.as_integer().and_then(Weight::new);
    weight.ok_or_else(|| format!("must be a number from 1 to {}", Weight::MAX))
}

fn count(value: &Value) -> Result<usize, String> {
    let count = value.as_integer().filter(|count| (1..=MAX_BUILDS).contains(count));
    let count = count.and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| format!("must be a number from 1 to {MAX_BUILDS}"))
}
