//! Tables of settings, laid over each other.

use serde::Serialize;
use toml::{Table, Value};

use super::tls::FILES;

/// The settings of `over`, and those of `under` that `over` does not have. A table among them is replaced as a whole. An
/// empty list replaces nothing.
///
/// If `over` names a TLS file for one side, clients or daemons, the files of that side in `under` do not count:
/// certificates from two places do not belong together.
pub(super) fn over(mut under: Table, over: Table) -> Table {
    for files in FILES {
        if files.iter().any(|key| over.contains_key(*key)) {
            under.retain(|key, _value| !files.contains(&key));
        }
    }
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    for (key, value) in over {
        if !(under.contains_key(&key) && is_empty(&value)) {
            under.insert(key, value);
        }
    }
    under
}

/// The settings as a table of the file.
pub(super) fn table(settings: &impl Serialize) -> Table {
    // Settings are texts, numbers, lists and tables, which all have a TOML form.
    Table::try_from(settings).unwrap_or_default()
}
