//! The workflow and the pipelines are what GitHub and Azure DevOps take.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    PIPELINE, ROOT, WORKFLOW, list,
    pipelines::{script, unrolled},
    support::{
        client::{run, succeed, text},
        tools::tool,
    },
    yaml,
};

#[test]
fn the_workflow_passes_actionlint() {
    let mut lint = Command::new(tool("actionlint"));
    lint.arg("-no-color").arg("-shellcheck").arg(tool("shellcheck"));
    succeed(lint.arg(Path::new(ROOT).join(WORKFLOW)));
    // An action that is named by a tag may be another one tomorrow.
    for job in yaml(WORKFLOW)["jobs"].as_object().expect("jobs").values() {
        for action in list(&job["steps"]).filter_map(|step| step["uses"].as_str()) {
            let commit = action.split_once('@').expect("a version").1;
            assert!(commit.len() == 40, "{action}");
        }
    }
}

/// To the schema of Azure Pipelines every scalar is text.
fn as_text(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(as_text).collect(),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| (key.clone(), as_text(value))).collect()
        }
        Value::Bool(_) | Value::Number(_) => value.to_string().into(),
        other => other.clone(),
    }
}

/// Holds a pipeline to the schema of Azure Pipelines.
fn check(pipeline: &Value) -> Output {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pipeline.json");
    fs::write(&file, as_text(pipeline).to_string()).expect("written");
    let mut check = Command::new(tool("check-jsonschema"));
    check.args(["--regex-variant", "python", "--builtin-schema", "vendor.azure-pipelines"]);
    run(check.arg(file))
}

#[test]
fn the_pipelines_have_the_schema_of_azure_pipelines() {
    let misspelt = serde_json::json!({"steps": [{"script": "true", "displayNam": "a"}]});
    let refused = check(&misspelt);
    assert!(!refused.status.success() && text(&refused).contains("displayNam"), "{refused:?}");
    let own = ["deploy/azure/pipelines/buildctl.yaml", "deploy/azure/pipelines/buildx.yaml"];
    for path in own.into_iter().chain([PIPELINE]) {
        let checked = check(&unrolled(&yaml(path)));
        assert!(checked.status.success(), "{path}: {}", text(&checked));
    }
}

#[test]
fn the_scripts_of_the_pipeline_pass_shellcheck() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("script");
    let mut count = 0;
    for stage in list(&unrolled(&yaml(PIPELINE))["stages"]) {
        let steps = list(&stage["jobs"]).flat_map(|job| list(&job["steps"]));
        for script in steps.filter_map(script) {
            fs::write(&file, format!("#!/usr/bin/env bash\n{script}")).expect("written");
            succeed(Command::new(tool("shellcheck")).arg(&file));
            count += 1;
        }
    }
    assert!(count >= 5, "{count}");
}
