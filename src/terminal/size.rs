//! The size of a terminal.

use std::os::fd::AsFd;

use rustix::termios::tcgetwinsize;

/// How many columns and rows a terminal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

impl Size {
    /// The size of a terminal that does not tell.
    pub const USUAL: Self = Self { columns: 80, rows: 24 };

    /// The size of the terminal that `output` is.
    pub fn of(output: impl AsFd) -> Self {
        match tcgetwinsize(output) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                Self { columns: size.ws_col.into(), rows: size.ws_row.into() }
            }
            _ => Self::USUAL,
        }
    }
}
