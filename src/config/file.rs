//! The configuration file.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use toml::Table;

use crate::regular_file::{self, Unreadable};

/// The longest file that is read. A thousand pools fit.
const MAX_FILE_LEN: u64 = 1 << 20;

/// A file that has been read.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) table: Table,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// The problem, if the file cannot be read or is not TOML.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = text(path).map_err(|error| format!("config: cannot read `{name}`: {error}"))?;
        let table = text.parse().map_err(|error: toml::de::Error| {
            let line = line(&text, &error.span().unwrap_or_default());
            format!("config: `{name}` is not TOML: line {line}: {}", error.message())
        })?;
        Ok(Self { path: path.to_owned(), text, table })
    }
}

/// The number of the line on which `span` begins.
pub(super) fn line(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}

fn text(path: &Path) -> Result<String, String> {
    let bytes = regular_file::read(path, MAX_FILE_LEN).map_err(|error| match error {
        Unreadable::Failed(error) => error.to_string(),
        Unreadable::NotRegular => "it is not a regular file".to_owned(),
        Unreadable::TooLong => "it is longer than 1 MiB".to_owned(),
    })?;
    String::from_utf8(bytes).map_err(|_invalid| "it is not UTF-8".to_owned())
}
