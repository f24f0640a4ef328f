//! What `deploy/` renders is correct: the real API server accepts all objects, a linter has no objection without an
//! answer, the proxy accepts its configuration, and values, schema and templates of the chart name the same keys.

mod accepted;
mod draining;
mod keys;
mod linted;
mod overlays;
mod release;
mod rights;
mod scaling;
mod service;
#[path = "../support/mod.rs"]
mod support;
mod walks;

use std::collections::BTreeMap;

use serde_json::Value;

/// The namespace of the agents, in which the fleet has no rights.
const AGENTS: &str = "azure-agents";

/// The containers of a pod, by name.
fn containers(pod: &Value) -> BTreeMap<String, Value> {
    let named = |container: &Value| {
        (container["name"].as_str().expect("a name").to_owned(), container.clone())
    };
    pod["containers"].as_array().expect("containers").iter().map(named).collect()
}
