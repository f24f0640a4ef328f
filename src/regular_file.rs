//! Reads a file that a setting names: a regular one, and no more of it than it may hold.
//!
//! Anything else may have no end, or may never begin: to open a pipe is to wait for its other end.

use std::{
    fs::{self, File},
    io::{self, Read as _, Take},
    path::Path,
};

/// Why a file is not read.
#[derive(Debug)]
pub enum Unreadable {
    /// The system refuses.
    Failed(io::Error),
    /// It is a device, a pipe or a directory.
    NotRegular,
    /// It has more bytes than it may.
    TooLong,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Opens a file that may have `most` bytes, so that one more can be read: then it is too long. `None` if it is not
/// regular.
///
/// # Errors
/// It cannot be opened.
pub fn open(path: &Path, most: u64) -> io::Result<Option<Take<File>>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    Ok(Some(File::open(path)?.take(most + 1)))
}

/// Reads a file that may have `most` bytes.
///
/// # Errors
/// It cannot be read, is not regular, or is too long.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, Unreadable> {
    let mut file = open(path, most)?.ok_or(Unreadable::NotRegular)?;
    let mut contents = Vec::new();
    let len = file.read_to_end(&mut contents)?;
    if len as u64 > most { Err(Unreadable::TooLong) } else { Ok(contents) }
}
