//! The pools: one outside `[[pool]]`, or each `[[pool]]` over what they have in common.

use std::collections::HashSet;

use toml::{Table, Value};

use super::{
    Pool,
    layers::{over, table},
    sections::Sections,
    tls::TlsSettings,
};
use crate::{address::Address, metrics::DEFAULT_POOL};

/// The longest name of a pool. Logs, metrics and paths of the admin port contain the name.
const MAX_NAME: usize = 63;

/// The keys that each pool has of its own, so they cannot stand outside `[[pool]]`.
pub(super) const MEMBERS: [&str; 3] = ["listen", "backend", "discover"];

/// Checks the pools. `own` is the value of the key `pool`; `pool` and `tls` are the settings outside `[[pool]]`, and `given`
/// those of them that are no defaults. `None` if there are too many problems.
pub(super) fn read(
    own: Option<Value>,
    pool: Pool,
    tls: &TlsSettings,
    given: &Table,
    problems: &mut Vec<String>,
) -> Option<Vec<Pool>> {
    let tables = tables(own, problems);
    if tables.is_empty() {
        return Some(vec![only(pool, tls, given, problems)]);
    }
    all_named(tables, &common(&pool, tls, given, problems), problems)
}

/// The entries of `[[pool]]`, each with its number.
fn tables(value: Option<Value>, problems: &mut Vec<String>) -> Vec<(usize, Table)> {
    let entries = match value {
        None => Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            problems.push("pool: must be a list of tables, as [[pool]]".to_owned());
            Vec::new()
        }
    };
    let mut tables = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        match entry {
            Value::Table(table) => tables.push((index, table)),
            other => {
                let found = other.type_str();
                problems.push(format!("pool[{index}]: must be a table, found {found}"));
            }
        }
    }
    tables
}

/// Checks the only pool, whose settings stand outside `[[pool]]`. `given` are the settings without the defaults.
fn only(pool: Pool, tls: &TlsSettings, given: &Table, problems: &mut Vec<String>) -> Pool {
    check_daemons(given, "", problems);
    let mut pool = Pool { name: DEFAULT_POOL.to_owned(), ..pool };
    pool.complete("", tls, problems);
    pool
}

/// The table of the settings that pools have in common. Keys among `given` that only a `[[pool]]` can have are reported.
fn common(pool: &Pool, tls: &TlsSettings, given: &Table, problems: &mut Vec<String>) -> Table {
    for key in MEMBERS.into_iter().filter(|key| !lacks(given, key)) {
        problems.push(format!("{key}: move this into a [[pool]]"));
    }
    let mut common = over(table(pool), table(tls));
    for key in MEMBERS {
        common.remove(key);
    }
    common
}

fn all_named(
    tables: Vec<(usize, Table)>,
    common: &Table,
    problems: &mut Vec<String>,
) -> Option<Vec<Pool>> {
    let mut pools = Vec::with_capacity(tables.len());
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for (index, table) in tables {
        let path = format!("pool[{index}].");
        let pool = named(table, common, &path, problems)?;
        if !names.insert(pool.name.clone()) {
            problems.push(format!("{path}name: `{}` is given twice", pool.name));
        }
        for address in &pool.listen {
            let any_port = matches!(address, Address::Tcp { port: 0, .. });
            if !any_port && !addresses.insert(address.clone()) {
                problems.push(format!("{path}listen: `{address}` is given twice"));
            }
        }
        pools.push(pool);
    }
    Some(pools)
}

/// Reads and checks one `[[pool]]`. The paths of its keys begin with `path`. What the pool does not set comes from
/// `common`.
fn named(mut own: Table, common: &Table, path: &str, problems: &mut Vec<String>) -> Option<Pool> {
    let name = own.remove("name").map(|name| match name {
        Value::String(name) => name,
        other => other.to_string(),
    });
    let name = name.unwrap_or_default();
    if !is_name(&name) {
        problems.push(format!(
            "{path}name: `{name}` is not a name of 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`"
        ));
    }
    if lacks(&own, "listen") {
        problems
            .push(format!("{path}listen: is needed, because clients choose a pool by its address"));
    }
    check_daemons(&own, path, problems);
    let mut sections = Sections::new(over(common.clone(), own), common, path);
    let (pool, tls) = Pool::read(&mut sections, problems)?;
    sections.finish(problems);
    let mut pool = Pool { name, ..pool };
    pool.complete(path, &tls, problems);
    Some(pool)
}

fn is_name(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(known)
}

/// Whether `table` has nothing for the list `key`.
fn lacks(table: &Table, key: &str) -> bool {
    table.get(key).is_none_or(|value| value.as_array().is_some_and(Vec::is_empty))
}

/// Reports a pool whose own settings name no source of daemons.
fn check_daemons(own: &Table, path: &str, problems: &mut Vec<String>) {
    if lacks(own, "backend") && lacks(own, "discover") {
        problems.push(format!(
            "{path}backend: at least one is needed, as [NAME=]tcp://HOST:PORT; or set discover"
        ));
    }
}
