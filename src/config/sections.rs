//! Reads typed sections from one table, and finds every problem in one run.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_path_to_error::{Deserializer, Path, Segment, Track};
use toml::{Table, Value};

/// The most wrong values that are reported of one section. Each costs another run over the table, and nobody reads more.
const MAX_WRONG: usize = 100;

/// One table from which several sections are read. Each section takes the keys that it knows.
#[derive(Debug)]
pub(super) struct Sections<'a> {
    table: Table,
    /// The table whose value replaces a wrong one.
    fallback: &'a Table,
    /// The paths of the keys begin with this: nothing, or for example `pool[0].`.
    path: &'a str,
    /// The paths of the keys that no section has taken so far; `None` before the first section.
    ignored: Option<BTreeSet<String>>,
}

impl<'a> Sections<'a> {
    pub(super) fn new(table: Table, fallback: &'a Table, path: &'a str) -> Self {
        Self { table, fallback, path, ignored: None }
    }

    /// The path of `key` in problems.
    pub(super) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// Takes the value of `key` out of the table, for a caller who reads it without serde.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// Reads one section. A wrong value is reported, and the section is read again without it, so that no wrong value hides
    /// the next. `None` if there are too many wrong values.
    pub(super) fn read<T: DeserializeOwned>(&mut self, problems: &mut Vec<String>) -> Option<T> {
        for _ in 0..MAX_WRONG {
            let (mut track, mut ignored) = (Track::new(), BTreeSet::new());
            let tracked = Deserializer::new(Value::Table(self.table.clone()), &mut track);
            let read = serde_ignored::deserialize(tracked, |path| {
                ignored.insert(path.to_string());
            });
            match read {
                Ok(section) => {
                    self.ignored = Some(match self.ignored.take() {
                        Some(before) => ignored_by_both(&before, &ignored),
                        None => ignored,
                    });
                    return Some(section);
                }
                Err(error) => {
                    let path = track.path();
                    let problem = in_plain_words(error.message());
                    problems.push(format!("{}: {problem}", self.path(&key_of(&path))));
                    self.leave_out(&path)?;
                }
            }
        }
        None
    }

    /// Reports the keys that no section has taken.
    pub(super) fn finish(self, problems: &mut Vec<String>) {
        let unknown = self.ignored.iter().flatten();
        problems.extend(unknown.map(|key| format!("{}: unknown key", self.path(key))));
    }

    /// Removes the value at `path` from the table, or replaces it by that of the fallback. `None` if there is no such value.
    fn leave_out(&mut self, path: &Path) -> Option<()> {
        let path: Vec<_> = path.iter().collect();
        let [Segment::Map { key }, rest @ ..] = path.as_slice() else { return None };
        if !remove(self.table.get_mut(key)?, rest) {
            self.table.remove(key);
            self.table.extend(self.fallback.get(key).map(|value| (key.clone(), value.clone())));
        }
        Some(())
    }
}

/// Removes the value at `path` from `value`. False if that is `value` itself.
fn remove(value: &mut Value, path: &[&Segment]) -> bool {
    match (path, value) {
        ([Segment::Map { key }], Value::Table(table)) => table.remove(key).is_some(),
        ([Segment::Seq { index }], Value::Array(list)) if *index < list.len() => {
            list.remove(*index);
            true
        }
        ([Segment::Map { key }, rest @ ..], Value::Table(table)) => {
            table.get_mut(key).is_some_and(|value| remove(value, rest))
        }
        ([Segment::Seq { index }, rest @ ..], Value::Array(list)) => {
            list.get_mut(*index).is_some_and(|value| remove(value, rest))
        }
        _ => false,
    }
}

/// The key that `path` leads to, without the number of a list's entry: the problem quotes the entry.
fn key_of(path: &Path) -> String {
    let keys = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.as_str()),
        _ => None,
    });
    keys.collect::<Vec<_>>().join(".")
}

/// The paths that are in both sets, by themselves or as a part of a table that is.
fn ignored_by_both(one: &BTreeSet<String>, other: &BTreeSet<String>) -> BTreeSet<String> {
    let within = |paths: &BTreeSet<String>, path: &str| {
        let tables = path.match_indices('.').map(|(end, _dot)| &path[..end]);
        paths.contains(path) || tables.into_iter().any(|table| paths.contains(table))
    };
    one.union(other).filter(|path| within(one, path) && within(other, path)).cloned().collect()
}

/// The message of serde, and for a value of the wrong type in the words of the other problems.
fn in_plain_words(message: &str) -> String {
    let wrong_type = message.strip_prefix("invalid type: ");
    match wrong_type.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((_found, "a boolean")) => "must be true or false".to_owned(),
        Some((found, expected)) => format!("must be {expected}, found {found}"),
        None => message.to_owned(),
    }
}
