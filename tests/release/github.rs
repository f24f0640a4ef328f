//! The workflow of GitHub Actions.

use std::{collections::BTreeMap, fs};

use regex::Regex;
use serde_json::Value;

use crate::{
    VERSION, WORKFLOW, list,
    published::{Published, assert_complete},
    runner::Runner,
    texts, yaml,
};

/// Runs the steps of a job that are scripts, for one entry of its matrix.
fn job(runner: &Runner, workflow: &Value, name: &str, matrix: &Value) {
    let expression = Regex::new(r"\$\{\{ ([a-z]+)\.([A-Za-z_]+) \}\}").expect("valid");
    let value = |found: &regex::Captures| match (&found[1], &found[2]) {
        ("matrix", key) => matrix[key].as_str().expect("a text").to_owned(),
        ("github", "server_url") => "https://forge.example".to_owned(),
        ("github", key) => {
            runner.get(&format!("GITHUB_{}", key.to_uppercase())).expect(key).clone()
        }
        ("secrets", _) => "token".to_owned(),
        (context, key) => unreachable!("{context}.{key}"),
    };
    let mut scripts = 0;
    for step in list(&workflow["jobs"][name]["steps"]) {
        let Some(script) = step["run"].as_str() else { continue };
        let env: BTreeMap<String, String> = texts(&workflow["env"])
            .chain(texts(&step["env"]))
            .map(|(name, text)| (name.to_owned(), expression.replace_all(text, value).into_owned()))
            .collect();
        assert!(!script.contains("${{"), "an expression in a script can be an injection: {script}");
        runner.step(script, &env);
        scripts += 1;
    }
    assert!(scripts > 1, "{name}");
}

#[test]
fn the_workflow_publishes_both_platforms_and_the_chart_and_signs_them() {
    let mut runner = Runner::new();
    let summary = runner.path("summary");
    let temp = runner.path("temp");
    for (variable, value) in [
        ("GITHUB_REF_NAME", &*format!("v{VERSION}")),
        ("GITHUB_REPOSITORY", "Contoso/buildkit-lb"),
        ("GITHUB_ACTOR", "somebody"),
        ("GITHUB_STEP_SUMMARY", &summary.display().to_string()),
        ("RUNNER_TEMP", &temp.display().to_string()),
    ] {
        runner.set(variable, value);
    }
    let workflow = yaml(WORKFLOW);
    // The artifacts of all jobs land in the directory `images` of the last one, so the jobs share a checkout here.
    for matrix in list(&workflow["jobs"]["image"]["strategy"]["matrix"]["include"]) {
        job(&runner, &workflow, "image", matrix);
    }
    job(&runner, &workflow, "publish", &Value::Null);
    let told = fs::read_to_string(summary).expect("a summary");
    let published = Published::told(&runner, &told, "contoso/buildkit-lb");
    assert_complete(&published);
    let metadata = published.metadata();
    let project = "https://forge.example/Contoso/buildkit-lb";
    for line in [
        format!("home: {project}\n"),
        format!("sources:\n- {project}\n"),
        format!("icon: {project}/raw/v{VERSION}/docs/icon.svg\n"),
    ] {
        assert!(metadata.contains(&line), "no {line} in {metadata}");
    }
}
