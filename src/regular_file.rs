//! Reads a file that a setting names, if it is a regular file and not larger than allowed.
//!
//! Another kind of file may have no end, or may block: opening a pipe waits for its other end.

use std::{
    fs::{self, File},
    io::{self, Read as _, Take},
    path::Path,
};

/// Why a file cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// The system cannot read the file.
    Failed(io::Error),
    /// The file is a device, a pipe or a directory.
    NotRegular,
    /// The file is larger than allowed.
    TooLong,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Opens a file of at most `most` bytes. One byte more can be read, which shows that the file is too large. `None`
/// if the file is not regular.
///
/// # Errors
/// The system cannot open the file.
pub fn open(path: &Path, most: u64) -> io::Result<Option<Take<File>>> {
    if !fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    Ok(Some(File::open(path)?.take(most + 1)))
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// The file cannot be read, is not regular, or is too large.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>, Unreadable> {
    let mut file = open(path, most)?.ok_or(Unreadable::NotRegular)?;
    let mut contents = Vec::new();
    let len = file.read_to_end(&mut contents)?;
    if len as u64 > most { Err(Unreadable::TooLong) } else { Ok(contents) }
}
