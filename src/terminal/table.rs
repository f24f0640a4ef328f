//! A table whose columns are aligned, whatever the width of its characters.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::{Style, printable};

/// What a cell without a value shows, so that a script can count the columns of a row.
const NOTHING: &str = "-";

/// The space between two columns.
const GAP: usize = 2;

/// One cell.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell that shows `text`.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = printable(text.as_ref());
        let text = if text.trim().is_empty() { NOTHING.to_owned() } else { text };
        Self { text, style: Style::Plain }
    }

    /// A cell that shows `text`, if there is one.
    pub fn of(text: Option<impl AsRef<str>>) -> Self {
        text.map_or_else(|| Self::new(""), Self::new)
    }

    /// The same cell in `style`.
    #[must_use]
    pub fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

/// Rows under a head.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with only its head.
    pub fn new<'a>(head: impl IntoIterator<Item = &'a str>) -> Self {
        let head = head.into_iter().map(|name| Cell::new(name).styled(Style::Head));
        Self { rows: vec![head.collect()] }
    }

    /// Adds a row, which has a cell for each name of the head.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// Whether there are no rows under the head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The lines of the table, none longer than `columns` if there is such a limit.
    pub fn lines(&self, colours: bool, columns: Option<usize>) -> Vec<String> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.width()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..count).map(width).collect();
        self.rows.iter().map(|row| line(row, &widths, colours, columns)).collect()
    }
}

fn line(row: &[Cell], widths: &[usize], colours: bool, columns: Option<usize>) -> String {
    let (mut line, mut used) = (String::new(), 0);
    for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
        let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(used));
        let text = cut(&cell.text, room);
        let is_last = at + 1 == row.len();
        let padding = if is_last { 0 } else { width - cell.text.width() + GAP };
        let padding = padding.min(room - text.width());
        line += &cell.style.paint(text, colours);
        line.extend(std::iter::repeat_n(' ', padding));
        used += text.width() + padding;
    }
    line.trim_end().to_owned()
}

/// The beginning of `text` that is at most `columns` wide.
pub fn cut(text: &str, columns: usize) -> &str {
    let mut used = 0;
    for (at, char) in text.char_indices() {
        used += char.width().unwrap_or_default();
        if used > columns {
            return &text[..at];
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["NAME", "STATE", "CAUSE"]);
        table.push(vec![Cell::new("日本"), Cell::new("ready").styled(Style::Good), Cell::new("")]);
        let cause = Cell::of(Some("no\nroom"));
        table.push(vec![Cell::new("b"), Cell::new("unhealthy"), cause]);
        table
    }

    #[test]
    fn columns_are_aligned_and_no_cell_is_empty() {
        let expected =
            ["NAME  STATE      CAUSE", "日本  ready      -", "b     unhealthy  no\\nroom"];
        assert_eq!(table().lines(false, None), expected);
        assert!(Table::new(["NAME"]).is_empty() && !table().is_empty());
    }

    #[test]
    fn colours_take_no_column() {
        let painted = table().lines(true, None);
        assert_eq!(painted[1], "日本  \x1b[32mready\x1b[0m      -");
    }

    #[test]
    fn no_line_is_longer_than_the_terminal() {
        for columns in 0..30 {
            for line in table().lines(false, Some(columns)) {
                assert!(line.width() <= columns, "{columns}: {line}");
            }
        }
        assert_eq!(table().lines(false, Some(3))[1], "日", "half a character is none");
    }
}
