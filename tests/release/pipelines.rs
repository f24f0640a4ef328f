//! The pipeline of Azure DevOps.

use std::{collections::BTreeMap, fs, process::Command};

use regex::Regex;
use serde_json::{Map, Value};

use crate::{
    PIPELINE, VERSION, list,
    published::{Published, assert_complete},
    runner::Runner,
    support::{client::succeed, tools::tool},
    texts, yaml,
};

/// The pipeline with its loops over parameters unrolled, as Azure DevOps does before it starts the pipeline.
pub(super) fn unrolled(pipeline: &Value) -> Value {
    let defaults = list(&pipeline["parameters"]);
    let parameters = defaults
        .map(|one| (one["name"].as_str().expect("a name").to_owned(), one["default"].clone()));
    let mut unrolled = unroll(pipeline, &parameters.collect());
    unrolled.as_object_mut().expect("an object").remove("parameters");
    unrolled
}

/// Replaces `${{ each NAME in parameters.LIST }}` by one item for each member, and `${{ NAME.KEY }}` by its value.
fn unroll(value: &Value, known: &Map<String, Value>) -> Value {
    let each = Regex::new(r"^\$\{\{ each (\w+) in parameters\.(\w+) \}\}$").expect("valid");
    let whole = Regex::new(r"^\$\{\{ (\w+)\.(\w+) \}\}$").expect("valid");
    let part = Regex::new(r"\$\{\{ (\w+)\.(\w+) \}\}").expect("valid");
    match value {
        Value::String(text) => match whole.captures(text) {
            Some(found) => known[&found[1]][&found[2]].clone(),
            None => {
                let text = part.replace_all(text, |found: &regex::Captures| {
                    known[&found[1]][&found[2]].as_str().expect("a text").to_owned()
                });
                text.into_owned().into()
            }
        },
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| (key.clone(), unroll(value, known))).collect()
        }
        Value::Array(items) => items
            .iter()
            .flat_map(|item| {
                let only = item.as_object().and_then(|entries| entries.iter().next());
                let found = only.and_then(|(key, body)| Some((each.captures(key)?, body)));
                let Some((found, body)) = found else { return vec![unroll(item, known)] };
                let members = list(&known[&found[2]]).flat_map(|member| {
                    let mut known = known.clone();
                    known.insert(found[1].to_owned(), member.clone());
                    list(body).map(|item| unroll(item, &known)).collect::<Vec<_>>()
                });
                members.collect()
            })
            .collect(),
        other => other.clone(),
    }
}

/// The script of a step.
pub(super) fn script(step: &Value) -> Option<&str> {
    step["script"].as_str().or_else(|| step["inputs"]["inlineScript"].as_str())
}

/// Runs the steps of a job. Returns what the last of them prints.
fn job(runner: &Runner, job: &Value) -> String {
    let variable = Regex::new(r"\$\(([\w.]+)\)").expect("valid");
    let value = |found: &regex::Captures| {
        let name = found[1].to_uppercase().replace('.', "_");
        runner.get(&name).cloned().unwrap_or_else(|| found[0].to_owned())
    };
    let mut told = String::new();
    for step in list(&job["steps"]) {
        if let Some(from) = step["publish"].as_str() {
            let to = runner.path(step["artifact"].as_str().expect("a name"));
            let from = runner.checkout().join(from);
            succeed(Command::new(tool("cp")).arg("-r").arg(from).arg(to));
        }
        // A test's cosign comes from the modules of the tests.
        let Some(script) = script(step).filter(|script| !script.contains("go install")) else {
            continue;
        };
        let env: BTreeMap<String, String> = texts(&step["env"])
            .map(|(name, text)| (name.to_owned(), variable.replace_all(text, value).into_owned()))
            .collect();
        told = runner.step(script, &env);
    }
    told
}

#[test]
fn the_pipeline_publishes_both_platforms_and_the_chart_and_signs_them() {
    let mut runner = Runner::new();
    for (variable, value) in [
        ("BUILD_SOURCEBRANCHNAME", &*format!("v{VERSION}")),
        ("BUILD_REPOSITORY_URI", "https://dev.azure.com/contoso/_git/buildkit-lb"),
        ("AGENT_TEMPDIRECTORY", &runner.path("temp").display().to_string()),
        ("PIPELINE_WORKSPACE", &runner.path("").display().to_string()),
    ] {
        runner.set(variable, value);
    }
    let mut told = String::new();
    for stage in list(&unrolled(&yaml(PIPELINE))["stages"]) {
        for one in list(&stage["jobs"]) {
            told = job(&runner, one);
            // Each job has a checkout of its own.
            let _none = fs::remove_dir_all(runner.checkout().join("images"));
        }
    }
    let published = Published::told(&runner, &told, "buildkit-lb");
    assert_complete(&published);
    let home = "home: https://dev.azure.com/contoso/_git/buildkit-lb\n";
    assert!(published.metadata().contains(home), "{}", published.metadata());
}
