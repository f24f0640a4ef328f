//! How the commands print: as tables, JSON or YAML.

use std::io::{self, Write as _};

use serde::Serialize;

use super::views::View;
use crate::{
    admin_client::ProxyFlags,
    snapshot::Snapshot,
    terminal::{self, Table},
};

/// The heading of the flags about the output, in `--help`.
pub const HEADING: &str = "Output";

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Aligned columns, for people.
    Table,
    /// The words of `/status.json`.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Which proxy is asked, and what of the answer is printed in which form.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    #[command(flatten)]
    pub(super) proxy: ProxyFlags,
    /// Print only what is about this pool.
    #[arg(help_heading = HEADING, long, value_name = "NAME")]
    pub(super) pool: Option<String>,
    /// Form of the output: table, or the words of /status.json as json or yaml.
    #[arg(help_heading = HEADING, long, value_name = "FORM", default_value = "table", hide_possible_values = true)]
    pub(super) output: Format,
}

/// Why the output cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The answer cannot be written as JSON.
    #[error("write JSON")]
    Json(#[from] serde_json::Error),
    /// The answer cannot be written as YAML.
    #[error("write YAML")]
    Yaml(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Standard output takes nothing.
    #[error("write to standard output")]
    Write(#[from] io::Error),
}

impl Flags {
    /// Prints one view of `snapshot`.
    pub(super) fn print(&self, snapshot: &Snapshot, view: View) -> Result<(), OutputError> {
        let text = match self.output {
            Format::Table => {
                let colours = terminal::has_colours(&io::stdout());
                view.lines(snapshot, colours).into_iter().map(|line| line + "\n").collect()
            }
            form => match view {
                View::Status => written(form, snapshot)?,
                View::Backends => written(form, &snapshot.backends)?,
                View::Builds => written(form, &snapshot.builds)?,
                View::Recent => written(form, &snapshot.recent)?,
                View::Queue => written(form, &snapshot.queue)?,
            },
        };
        print(&text)
    }
}

/// Prints `text`. A reader that has closed the pipe has read enough.
pub(super) fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn written(form: Format, value: &impl Serialize) -> Result<String, OutputError> {
    match form {
        Format::Yaml => {
            serde_saphyr::to_string(value).map_err(|error| OutputError::Yaml(Box::new(error)))
        }
        Format::Table | Format::Json => {
            Ok(terminal::json(&serde_json::to_string_pretty(value)?) + "\n")
        }
    }
}

/// The lines of `table`, or `nothing` if it is empty.
pub(super) fn lines(
    table: &Table,
    nothing: &str,
    colours: bool,
    columns: Option<usize>,
) -> Vec<String> {
    if table.is_empty() { vec![nothing.to_owned()] } else { table.lines(colours, columns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_cannot_control_a_terminal_and_say_the_same() {
        let odd = "a\x1b[2J\u{9b}1m\u{202e}\u{e0001}ä\"\\\n: - #";
        assert!(!written(Format::Json, &[odd]).expect("written").contains('\u{202e}'));
        for form in [Format::Json, Format::Yaml] {
            let text = written(form, &[odd]).expect("written");
            assert!(text.contains('ä'), "{text:?}");
            assert!(!text.replace('\n', "").contains(char::is_control), "{form:?}: {text:?}");
            let read: Vec<String> =
                serde_saphyr::from_str(&text).expect("YAML, of which JSON is a part");
            assert_eq!(read, [odd], "{form:?}: {text:?}");
        }
    }
}
