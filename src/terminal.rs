//! Text on a terminal: foreign text that cannot control it, colours, and tables.

mod size;
mod table;

use std::{env, fmt, io::IsTerminal};

use unicode_width::UnicodeWidthChar as _;

pub use self::{
    size::Size,
    table::{Cell, Table, cut},
};

/// The colour of a text, by its meaning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    /// The terminal's own colours.
    #[default]
    Plain,
    /// The head of a table.
    Head,
    /// All is well.
    Good,
    /// Somebody should look.
    Doubtful,
    /// Something is broken.
    Bad,
}

impl Style {
    /// The number in the escape sequence that begins the style (ECMA-48, SGR).
    fn code(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Head => Some(1),
            Self::Good => Some(32),
            Self::Doubtful => Some(33),
            Self::Bad => Some(31),
        }
    }

    /// `text` in this style, if `colours` are wanted.
    pub fn paint(self, text: &str, colours: bool) -> String {
        match self.code() {
            Some(code) if colours => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// Whether `output` takes colours: it is a terminal, and neither `NO_COLOR` nor the kind of the terminal forbids them.
pub fn has_colours(output: &impl IsTerminal) -> bool {
    let forbidden = env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    let dumb = env::var_os("TERM").is_some_and(|kind| kind == "dumb");
    output.is_terminal() && !forbidden && !dumb
}

/// `text` with every character escaped that a terminal does not simply show: control characters, which could move the
/// cursor or change what was printed before, and those that take no column or change the direction of text.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if is_shown(char) {
            shown.push(char);
        } else {
            shown.extend(char.escape_default());
        }
    }
    shown
}

/// JSON in which every character is escaped that controls a terminal. Only strings contain such characters, because JSON
/// itself has none but line ends.
pub fn json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for char in json.chars() {
        if char == '\n' || printable(char.encode_utf8(&mut [0; 4])).len() == char.len_utf8() {
            text.push(char);
        } else {
            let mut units = [0; 2];
            let units = char.encode_utf16(&mut units).iter();
            text.extend(units.map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text
}

fn is_shown(char: char) -> bool {
    // A quote and a backslash are escaped only where they would end a literal.
    let quoted = matches!(char, '"' | '\'' | '\\');
    char.width().is_some_and(|width| width > 0) && (quoted || char.escape_debug().len() == 1)
}

/// Bytes as a person reads them, such as `1.9MiB`.
#[derive(Debug, Clone, Copy)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut tenths, mut unit) = (u128::from(self.0) * 10, "B");
        for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if tenths < 10_240 {
                break;
            }
            (tenths, unit) = (tenths / 1024, larger);
        }
        match unit {
            "B" => write!(f, "{}B", self.0),
            unit => write!(f, "{}.{}{unit}", tenths / 10, tenths % 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_control_a_terminal() {
        for (text, shown) in [
            ("team/app:1.2", "team/app:1.2"),
            ("it's \"C:\\x\"", "it's \"C:\\x\""),
            ("größe 日本 🚀", "größe 日本 🚀"),
            ("\x1b[2J\x07\r\n", "\\u{1b}[2J\\u{7}\\r\\n"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\u{202e}b\u{200b}c\u{2028}d", "a\\u{202e}b\\u{200b}c\\u{2028}d"),
            ("a\u{301}", "a\\u{301}"),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
        }
    }

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        assert_eq!(Style::Bad.paint("lost", true), "\x1b[31mlost\x1b[0m");
        assert_eq!(Style::Bad.paint("lost", false), "lost");
        assert_eq!(Style::Plain.paint("a", true), "a");
    }

    #[test]
    fn bytes_have_one_digit_after_the_point() {
        for (bytes, shown) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (1_992_830, "1.9MiB"),
            (u64::MAX, "15.9EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }
}
