//! The table of the chart's values. values.yaml describes each value in a comment `# -- TEXT` above it.

use std::{collections::BTreeSet, fmt::Write as _, fs, mem};

use serde_json::Value;

const CHART: &str = "deploy/chart";

/// A longer default is not shown; values.yaml has it.
const LONGEST_DEFAULT: usize = 60;

/// A row for each value that the schema names as a whole, in the order of values.yaml.
pub(super) fn table() -> String {
    let read = |name: &str| fs::read_to_string(format!("{CHART}/{name}")).expect("a file");
    let yaml = read("values.yaml");
    let values: Value = serde_saphyr::from_str(&yaml).expect("YAML");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let mut leaves = BTreeSet::new();
    find_leaves(&schema, "", &mut leaves);

    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for (key, text) in descriptions(&yaml).into_iter().filter(|(key, _)| leaves.contains(key)) {
        assert!(!text.is_empty(), "values.yaml does not describe {key}");
        let default = key.split('.').fold(&values, |values, name| &values[name]).to_string();
        let default = match default.len() > LONGEST_DEFAULT {
            true => "[values.yaml](values.yaml)".to_owned(),
            false => format!("`{default}`"),
        };
        let text = text.replace('|', "\\|").replace('<', "\\<");
        let _ = writeln!(table, "| `{key}` | {default} | {text} |");
    }
    table
}

fn find_leaves(schema: &Value, path: &str, leaves: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        leaves.insert(path.to_owned());
        return;
    };
    for (key, schema) in properties {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        find_leaves(schema, &below, leaves);
    }
}

/// Each key of the file with the text above it, which may be empty.
fn descriptions(yaml: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut path: Vec<(usize, &str)> = Vec::new();
    let mut text = String::new();
    for line in yaml.lines() {
        let trimmed = line.trim_start();
        let is_name = |name: &&str| name.chars().all(char::is_alphanumeric);
        if let Some(start) = trimmed.strip_prefix("# -- ") {
            start.clone_into(&mut text);
        } else if let Some(more) = trimmed.strip_prefix("# ") {
            if !text.is_empty() {
                text = format!("{text} {more}");
            }
        } else if let Some(name) = trimmed.split_once(':').map(|(name, _)| name).filter(is_name) {
            let depth = line.len() - trimmed.len();
            path.retain(|(outer, _)| *outer < depth);
            path.push((depth, name));
            let key = path.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(".");
            found.push((key, mem::take(&mut text)));
        } else {
            text.clear();
        }
    }
    found
}

#[test]
fn a_description_belongs_to_the_key_below_it() {
    let yaml = "# A word on all.\na:\n  # -- One\n  # line more.\n  b: 1\n  c:\n    # Why.\n    - x\nd: 2\n";
    let found = descriptions(yaml);
    let expected = [("a", ""), ("a.b", "One line more."), ("a.c", ""), ("d", "")]
        .map(|(key, text)| (key.to_owned(), text.to_owned()));
    assert_eq!(found, expected);
}
