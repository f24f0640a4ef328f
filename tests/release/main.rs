//! A release is built, pushed and signed by the steps of its workflows, against a real fleet and a real registry.

mod github;
mod linted;
mod pipelines;
mod profile;
mod published;
mod runner;
mod scripts;
#[path = "../support/mod.rs"]
mod support;

use std::{fs, path::Path};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const VERSION: &str = env!("CARGO_PKG_VERSION");

const WORKFLOW: &str = ".github/workflows/release.yml";

const PIPELINE: &str = "deploy/release/azure-pipelines.yaml";

/// A YAML file of the repository.
fn yaml(path: &str) -> Value {
    let text = fs::read_to_string(Path::new(ROOT).join(path)).expect(path);
    serde_saphyr::from_str(&text).expect(path)
}

/// The members of a list.
fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The entries of an object whose values are text.
fn texts(value: &Value) -> impl Iterator<Item = (&str, &str)> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
}
