//! The fields of a record in a line of text.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

use crate::terminal::printable;

/// Writes the message and then `name=value` for each field.
///
/// The library's own writer does the same, and chooses a colour for each part of each field before it finds that there
/// are none. The record of a build has 25 fields.
#[derive(Debug)]
pub(super) struct TextFields;

impl<'a> FormatFields<'a> for TextFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'a>, fields: R) -> fmt::Result {
        let mut line = Line { writer, empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'a> {
    writer: Writer<'a>,
    empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, name: &str, value: &dyn fmt::Debug) -> fmt::Result {
        if !std::mem::take(&mut self.empty) {
            self.writer.write_char(' ')?;
        }
        if name == "message" {
            return write!(Printable(&mut self.writer), "{value:?}");
        }
        self.writer.write_str(name.strip_prefix("r#").unwrap_or(name))?;
        self.writer.write_char('=')?;
        write!(self.writer, "{value:?}")
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Records of `log` carry what the line shows already in such fields.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.write(field.name(), value);
        }
    }
}

/// Escapes what a terminal or a reader of lines would act on.
struct Printable<'a, 'b>(&'a mut Writer<'b>);

impl Write for Printable<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            true => self.0.write_str(text),
            false => self.0.write_str(&printable(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::info;
    use tracing_subscriber::fmt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What `log` writes with these fields' writer, without time and colours.
    fn written<F>(fields: F, log: fn()) -> String
    where
        F: for<'a> FormatFields<'a> + Send + Sync + 'static,
    {
        let lines = Lines::default();
        let into = lines.clone();
        let subscriber = fmt::Subscriber::builder()
            .without_time()
            .with_ansi(false)
            .fmt_fields(fields)
            .with_writer(move || into.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_line_is_the_one_of_the_library() {
        let log = || {
            let (missing, there) = (None::<u64>, Some(7_u64));
            info!(r#ref = "a \"b\"\n", missing, there, shown = %"plain", debug = ?[1, 2], yes = true, "said");
            info!(only = 1.5);
            info!("nothing {}", "else");
        };
        let line = written(TextFields, log);
        assert_eq!(line, written(fmt::format::DefaultFields::new(), log));
        assert!(
            line.contains(r#"said ref="a \"b\"\n" there=7 shown=plain debug=[1, 2] yes=true"#),
            "{line}"
        );
    }

    #[test]
    fn a_message_is_one_line_and_moves_no_cursor() {
        let line = written(TextFields, || info!("a{}b", "\n\u{1b}[2J\u{9b}"));
        assert!(line.ends_with("a\\n\\u{1b}[2J\\u{9b}b\n"), "{line:?}");
    }
}
