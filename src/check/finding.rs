//! What a check finds.

use serde::{Deserialize, Serialize};

use crate::terminal::{self, Cell, Style, Table};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// Builds work, and somebody should look.
    Warning,
    /// Builds fail, or the proxy does not start.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// What to do. Empty if all is well.
    pub advice: String,
}

/// All findings, in the order of the check.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, for people.
    Table,
    /// A list of findings.
    Json,
}

impl Findings {
    fn push(&mut self, level: Level, subject: &str, text: String, advice: &str) {
        let (subject, advice) = (subject.to_owned(), advice.to_owned());
        self.0.push(Finding { level, subject, text, advice });
    }

    /// Notes that all is well.
    pub(super) fn ok(&mut self, subject: &str, text: impl Into<String>) {
        self.push(Level::Ok, subject, text.into(), "");
    }

    /// Notes that somebody should look.
    pub(super) fn warning(&mut self, subject: &str, text: impl Into<String>, advice: &str) {
        self.push(Level::Warning, subject, text.into(), advice);
    }

    /// Notes that something is broken.
    pub(super) fn error(&mut self, subject: &str, text: impl Into<String>, advice: &str) {
        self.push(Level::Error, subject, text.into(), advice);
    }

    /// Whether anything is broken.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.level == Level::Error)
    }

    /// The findings as text, one on each line of a table.
    ///
    /// # Errors
    /// The findings cannot be written as JSON.
    pub fn text(&self, form: Format) -> Result<String, serde_json::Error> {
        match form {
            Format::Json => Ok(terminal::json(&serde_json::to_string_pretty(&self.0)?) + "\n"),
            Format::Table => {
                let colours = terminal::has_colours(&std::io::stdout());
                let lines = self.table().lines(colours, None);
                Ok(lines.into_iter().map(|line| line + "\n").collect())
            }
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["LEVEL", "SUBJECT", "FINDING"]);
        for Finding { level, subject, text, advice } in &self.0 {
            let (word, style) = match level {
                Level::Ok => ("ok", Style::Good),
                Level::Warning => ("warning", Style::Doubtful),
                Level::Error => ("error", Style::Bad),
            };
            let text = if advice.is_empty() { text.clone() } else { format!("{text}: {advice}") };
            table.push(vec![Cell::new(word).styled(style), Cell::new(subject), Cell::new(text)]);
        }
        table
    }
}
