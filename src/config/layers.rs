//! Settings as tables, one over the other.

use serde::Serialize;
use toml::{Table, Value};

use super::tls::FILES;

/// The settings of `over`, and those of `under` that `over` does not have. A table within them counts as a whole, and an
/// empty list as none.
///
/// A file of TLS in `over` hides all files of its side in `under`: certificates of two places do not belong together.
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

/// Settings as the file would write them.
pub(super) fn table(settings: &impl Serialize) -> Table {
    // Sections are structs of texts, numbers, lists and tables, which all have a TOML form.
    Table::try_from(settings).unwrap_or_default()
}
