//! Reads typed sections out of one table, with every problem in one run.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_path_to_error::{Deserializer, Path, Segment, Track};
use toml::{Table, Value};

/// The most wrong values in one table. Each costs another run over the table, and nobody reads more.
const MAX_WRONG: usize = 100;

/// One table, out of which several sections are read. Each takes the keys that it knows.
#[derive(Debug)]
pub(super) struct Sections<'a> {
    table: Table,
    /// What takes the place of a value that is wrong.
    fallback: &'a Table,
    /// What the path of a key begins with: empty, or as `pool[0].`.
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

    /// Takes the value of `key`, which the caller reads by itself.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.table.remove(key)
    }

    /// Reads one section. A value that does not fit is reported, and the fallback's is read in its place, so that no
    /// wrong value hides the next. `None` if there are too many of them.
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

    /// Takes the value at `path` out of the table. `None` if the table has no such value.
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

/// The key that `path` leads to. The problem quotes the entry of a list, so its number says nothing more.
fn key_of(path: &Path) -> String {
    let keys = path.iter().map_while(|segment| match segment {
        Segment::Map { key } => Some(key.as_str()),
        _ => None,
    });
    keys.collect::<Vec<_>>().join(".")
}

/// The paths that stand in both sets, alone or within a table that stands there.
fn ignored_by_both(one: &BTreeSet<String>, other: &BTreeSet<String>) -> BTreeSet<String> {
    let within = |paths: &BTreeSet<String>, path: &str| {
        let tables = path.match_indices('.').map(|(end, _dot)| &path[..end]);
        paths.contains(path) || tables.into_iter().any(|table| paths.contains(table))
    };
    one.union(other).filter(|path| within(one, path) && within(other, path)).cloned().collect()
}

/// serde's message for a value of the wrong type, in the words of the other problems.
fn in_plain_words(message: &str) -> String {
    let wrong_type = message.strip_prefix("invalid type: ");
    match wrong_type.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((_found, "a boolean")) => "must be true or false".to_owned(),
        Some((found, expected)) => format!("must be {expected}, found {found}"),
        None => message.to_owned(),
    }
}
