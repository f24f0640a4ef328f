//! Ordered rules in settings: lists of tables, each with a source and the part of its value that counts.

use regex::{Regex, RegexBuilder};
use toml::{Table, Value};

/// The longest pattern, in bytes. No pattern that takes a part of a name needs more.
const MAX_PATTERN_LEN: usize = 1024;

/// The largest compiled pattern, in bytes. The time of a match is always linear in the length of the value.
const MAX_PATTERN_SIZE: usize = 1 << 20;

/// The words of one kind of rules in error texts.
#[derive(Debug)]
pub struct Kind {
    /// What `from` is, in the text that says that it is missing.
    pub from: &'static str,
    /// What a rule finds.
    pub finds: &'static str,
    /// Whether a pattern must match all of a value. If a pattern matches in the middle, clients can choose the text
    /// around it.
    pub matches_all: bool,
}

/// A source, and the part of its values that counts: `{ from = "WORD", regex = "…" }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule<S> {
    /// Where the value comes from.
    pub source: S,
    pattern: Option<Pattern>,
}

/// A pattern as it was written, and in compiled form.
#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<S: PartialEq> Rule<S> {
    /// A rule for the whole value of `source`.
    pub fn all(source: S) -> Self {
        Self { source, pattern: None }
    }

    /// Reads the table of a rule. `source` parses the word of its source.
    ///
    /// # Errors
    /// The text says what is wrong with the table.
    pub fn read(
        mut table: Table,
        kind: &Kind,
        source: impl FnOnce(&str) -> Result<S, String>,
    ) -> Result<Self, String> {
        let Some(Value::String(from)) = table.remove("from") else {
            return Err(format!("needs `from`, {}", kind.from));
        };
        let source = source(&from)?;
        let pattern = match table.remove("regex") {
            None => None,
            Some(Value::String(text)) => Some(Pattern { regex: compile(&text, kind)?, text }),
            Some(_) => return Err("`regex` must be a string".to_owned()),
        };
        match table.keys().next() {
            Some(unknown) => Err(format!("unknown key `{unknown}`")),
            None => Ok(Self { source, pattern }),
        }
    }

    /// The pattern as it was written. `None` if there is none.
    pub fn pattern(&self) -> Option<&str> {
        self.pattern.as_ref().map(|pattern| pattern.text.as_str())
    }

    /// The part of `value` that counts: the group of the pattern or, without a group, the whole match. `None` if
    /// the pattern does not match.
    pub fn part(&self, value: String) -> Option<String> {
        let Some(pattern) = &self.pattern else { return Some(value) };
        let captures = pattern.regex.captures(&value)?;
        let part = captures.get(1).or_else(|| captures.get(0))?;
        Some(part.as_str().to_owned())
    }

    /// Whether the rule `later` never counts after this one, because this one matches every value that it does.
    pub fn hides(&self, later: &Self) -> bool {
        self.source == later.source && (self.pattern.is_none() || self == later)
    }
}

fn compile(pattern: &str, kind: &Kind) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN_LEN {
        return Err(format!("`regex` is longer than {MAX_PATTERN_LEN} bytes"));
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_PATTERN_SIZE)
            .dfa_size_limit(MAX_PATTERN_SIZE)
            .build()
            .map_err(|error| format!("`regex` is not valid: {}", one_line(&error.to_string())))
    };
    // Compiled alone first, so that an error message is about the text as it was written.
    let mut regex = build(pattern)?;
    if kind.matches_all {
        regex = build(&format!(r"\A(?:{pattern})\z"))?;
    }
    match regex.captures_len() - 1 {
        0 | 1 => Ok(regex),
        groups => Err(format!(
            "`regex` has {groups} groups: it is not clear which is the {}, write (?:…) for the others",
            kind.finds
        )),
    }
}

/// The last line of an error message. The lines before it show the position of the mistake.
fn one_line(message: &str) -> &str {
    message.lines().last().unwrap_or_default().trim_start_matches("error: ")
}

/// The entries of a list of at most `most` tables, which is called `path` in `problems`.
pub fn tables(
    value: Value,
    path: &str,
    most: usize,
    problems: &mut Vec<String>,
) -> Option<Vec<Value>> {
    let Value::Array(entries) = value else {
        problems.push(format!("{path}: must be a list of tables, as [[{path}]]"));
        return None;
    };
    if entries.is_empty() || entries.len() > most {
        problems.push(format!("{path}: must be 1 to {most} tables, found {}", entries.len()));
        return None;
    }
    Some(entries)
}
