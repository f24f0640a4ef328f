//! Where a setting was given: the flag, the variable, or the line of the file.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    file::{File, line},
    pools::MEMBERS,
};

/// Where each setting was given.
#[derive(Debug)]
pub(super) struct Origins<'a> {
    given: &'a BTreeMap<String, String>,
    file: Option<(&'a File, Spanned<DeTable<'a>>)>,
}

impl<'a> Origins<'a> {
    /// `given` has the flag or the variable of each key; all other keys are from the file.
    pub(super) fn new(given: &'a BTreeMap<String, String>, file: Option<&'a File>) -> Self {
        let file = file.and_then(|file| Some((file, DeTable::parse(&file.text).ok()?)));
        Self { given, file }
    }

    /// The origin of a key such as `pool[1].tls-dir`: `--FLAG`, a variable, or `FILE:LINE`. `None` if no layer has the key.
    pub(super) fn of(&self, key: &str) -> Option<String> {
        let first = key.split(['.', '[']).next()?;
        if let Some(origin) = self.given.get(first) {
            return Some(origin.clone());
        }
        let (file, document) = self.file.as_ref()?;
        let found = find(document.get_ref(), key)?;
        // What a pool does not set comes from outside the pools.
        let common = key.strip_prefix("pool[").and_then(|rest| rest.split_once("]."));
        let common = common.map(|(_number, key)| key).filter(|key| !MEMBERS.contains(key));
        let common = common.filter(|_key| !found.whole).and_then(|key| self.of(key));
        let line = line(&file.text, &found.span);
        common.or_else(|| Some(format!("{}:{line}", file.path.display())))
    }
}

/// The innermost part of a path that a document has.
#[derive(Debug)]
struct Found {
    /// Where the part stands in the text.
    span: Range<usize>,
    /// Whether the document has all of the path.
    whole: bool,
}

fn find(document: &DeTable<'_>, key: &str) -> Option<Found> {
    let mut parts = key.split(['.', '[']).map(|part| part.trim_end_matches(']'));
    let (name, mut value) = document.get_key_value(parts.next()?)?;
    let mut found = Found { span: name.span(), whole: true };
    for part in parts {
        let inner = match value.get_ref() {
            DeValue::Table(table) => {
                table.get_key_value(part).map(|(name, value)| (name.span(), value))
            }
            DeValue::Array(list) => {
                let entry = part.parse::<usize>().ok().and_then(|index| list.get(index));
                entry.map(|entry| (entry.span(), entry))
            }
            _ => None,
        };
        let Some((span, inner)) = inner else { return Some(Found { whole: false, ..found }) };
        (found.span, value) = (span, inner);
    }
    Some(found)
}
