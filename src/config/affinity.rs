//! The `[affinity]` table: the sources of a key, their order, and which part of a value counts.

use serde::{Serialize, Serializer};
use toml::{Table, Value};

use crate::{
    affinity::{
        Rules,
        rules::{Rule, Source},
    },
    rules::Kind,
};

/// The most rules. A list with more rules than there are sources contains a mistake.
const MAX_RULES: usize = 32;

/// What the entries of the list are about.
const KIND: Kind = Kind { from: "the word of a source", finds: "key", matches_all: false };

/// Reads the table. Each problem begins with the path of its key, and `path` is the path of the table.
pub(super) fn read(value: Value, path: &str, problems: &mut Vec<String>) -> Rules {
    let mut rules = Rules::default();
    let table = match value {
        Value::Table(table) => table,
        other => {
            problems.push(format!("{path}: must be a table, found {}", other.type_str()));
            return rules;
        }
    };
    for (key, value) in table {
        let path = format!("{path}.{key}");
        match key.as_str() {
            "sources" => rules.rules = read_sources(value, &path, problems),
            "include" => rules.include = read_include(value, &path, problems),
            _ => problems.push(format!("{path}: unknown key")),
        }
    }
    rules
}

/// Writes the rules as the table from which [`read`] gives the same rules.
pub(super) fn serialize<S: Serializer>(rules: &Rules, serializer: S) -> Result<S::Ok, S::Error> {
    to_table(rules).serialize(serializer)
}

fn to_table(rules: &Rules) -> Table {
    let source = |rule: &Rule| match rule.pattern() {
        None => Value::String(rule.source.to_string()),
        Some(pattern) => Value::Table(Table::from_iter([
            ("from".to_owned(), rule.source.to_string().into()),
            ("regex".to_owned(), pattern.into()),
        ])),
    };
    let sources: Vec<_> = rules.rules.iter().map(source).collect();
    Table::from_iter([
        ("sources".to_owned(), Value::Array(sources)),
        ("include".to_owned(), rules.include.clone().into()),
    ])
}

fn read_sources(value: Value, path: &str, problems: &mut Vec<String>) -> Vec<Rule> {
    let Value::Array(entries) = value else {
        problems.push(format!("{path}: must be a list of sources"));
        return Vec::new();
    };
    if entries.is_empty() || entries.len() > MAX_RULES {
        problems.push(format!(
            "{path}: must have 1 to {MAX_RULES} sources, found {}; builds without a key are placed by load",
            entries.len()
        ));
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        match read_rule(entry) {
            Ok(rule) => {
                if rules.iter().any(|earlier| earlier.hides(&rule)) {
                    problems.push(format!(
                        "{path}[{index}]: unreachable: an earlier entry already matches every value of `{}`",
                        rule.source
                    ));
                }
                rules.push(rule);
            }
            Err(problem) => problems.push(format!("{path}[{index}]: {problem}")),
        }
    }
    rules
}

/// `"WORD"` or `{ from = "WORD", regex = "…" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    match entry {
        Value::String(word) => Ok(Rule::all(Source::parse(&word)?)),
        Value::Table(table) => Rule::read(table, &KIND, Source::parse),
        other => Err(format!("must be a string or a table, found {}", other.type_str())),
    }
}

fn read_include(value: Value, path: &str, problems: &mut Vec<String>) -> Vec<String> {
    let names: Vec<String> = match value.try_into() {
        Ok(names) => names,
        Err(_untyped) => {
            problems.push(format!("{path}: must be a list of strings"));
            return Vec::new();
        }
    };
    for (index, name) in names.iter().enumerate() {
        if !["target", "platform"].contains(&name.as_str()) {
            problems.push(format!("{path}[{index}]: `{name}` is not one of target or platform"));
        } else if names[..index].contains(name) {
            problems.push(format!("{path}[{index}]: `{name}` is given twice"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Rules, Vec<String>> {
        let mut problems = Vec::new();
        let table: Table = text.parse().expect("TOML");
        let rules = read(Value::Table(table), "affinity", &mut problems);
        if problems.is_empty() { Ok(rules) } else { Err(problems) }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_rules() {
        let text = r#"
            sources = [{ from = "image", regex = '^team-a/(.+)-(?:dev|prod)$' }, "cache_ref", "opt:project"]
            include = ["target"]"#;
        let read = rules(text).expect("valid");
        assert_ne!(read, Rules::default());
        assert_eq!(rules(&to_table(&read).to_string()), Ok(read));
    }

    #[test]
    fn what_is_wrong_with_rules_is_named_with_its_key() {
        let long = format!(r#"sources = [{{ from = "vcs", regex = "{}" }}]"#, "a".repeat(2000));
        for (text, problem) in [
            (r#"sources = ["vcs", "Image"]"#, "affinity.sources[1]: `Image` is not one of"),
            (r#"sources = []"#, "affinity.sources: must have 1 to 32 sources"),
            (r#"sources = "vcs""#, "affinity.sources: must be a list"),
            (
                r#"sources = ["vcs", { from = "vcs", regex = "a" }]"#,
                "affinity.sources[1]: unreachable: an earlier entry",
            ),
            (
                r#"sources = [{ from = "vcs", regex = "(" }]"#,
                "affinity.sources[0]: `regex` is not valid: unclosed group",
            ),
            (
                r#"sources = [{ from = "vcs", regex = "(a)(b)" }]"#,
                "affinity.sources[0]: `regex` has 2 groups",
            ),
            (
                r#"sources = [{ from = "vcs", regex = "(?:(?:(?:a{100}){100}){100})" }]"#,
                "affinity.sources[0]: `regex` is not valid",
            ),
            (&long, "affinity.sources[0]: `regex` is longer than"),
            (r#"sources = [{ regex = "a" }]"#, "affinity.sources[0]: needs `from`"),
            (
                r#"sources = [{ from = "vcs", cut = "a" }]"#,
                "affinity.sources[0]: unknown key `cut`",
            ),
            (r#"include = ["tag"]"#, "affinity.include[0]: `tag` is not one of"),
            (r#"include = ["target", "target"]"#, "affinity.include[1]: `target` is given twice"),
            (r#"order = []"#, "affinity.order: unknown key"),
        ] {
            let problems = rules(text).expect_err(text);
            assert!(problems[0].starts_with(problem), "{problems:?}");
        }
    }
}
