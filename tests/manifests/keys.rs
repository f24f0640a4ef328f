//! The values, the schema and the templates of the chart name the same keys.

use std::{collections::BTreeSet, fs, path::Path};

use regex::Regex;
use serde_json::Value;

use crate::support::rendered::DEPLOY;

#[test]
fn values_schema_and_templates_name_the_same_keys() {
    let chart = Path::new(DEPLOY).join("chart");
    let read = |name: &str| fs::read_to_string(chart.join(name)).expect("a file");
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).expect("YAML");
    let mut keys = BTreeSet::new();
    leaves(&schema, &values, "", &mut keys);
    assert!(keys.len() > 100, "{}", keys.len());

    let reference = Regex::new(r"\.Values((?:\.[A-Za-z]+)+)").expect("valid");
    let mut used = BTreeSet::new();
    for directory in ["templates", "templates/tests"] {
        for entry in fs::read_dir(chart.join(directory)).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let template = fs::read_to_string(path).expect("a template");
                let found = reference.captures_iter(&template);
                used.extend(found.map(|found| found[1].trim_start_matches('.').to_owned()));
            }
        }
    }
    assert_eq!(keys, used);
}

/// The keys that the schema names as a whole. Each has a default.
fn leaves(schema: &Value, values: &Value, path: &str, keys: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else {
        keys.insert(path.to_owned());
        return;
    };
    assert_eq!(schema["additionalProperties"], false, "{path} takes keys that nobody reads");
    for (key, schema) in properties {
        // Helm's own values, for charts that this chart is a part of.
        if path.is_empty() && key == "global" {
            continue;
        }
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let value = values.get(key);
        assert!(value.is_some(), "{below} has no default");
        leaves(schema, value.unwrap_or(&Value::Null), &below, keys);
    }
    for key in values.as_object().into_iter().flatten().map(|(key, _value)| key) {
        assert!(properties.contains_key(key), "{path}.{key} is not in the schema");
    }
}
