//! A checkout of a project on a fresh agent, which runs the steps of a pipeline.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Output},
};

use regex::Regex;
use serde_json::Value;

use crate::{
    KIT, STEPS, executable, registry,
    support::{
        client::{Context, run, succeed, text},
        tools::{shell, tool},
    },
    yaml,
};

/// Answers the calls of the steps to the Azure CLI, and no others.
const AZ: &str = r#"#!/bin/sh
case "$*" in
"acr login --name "*" --expose-token --query accessToken --output tsv") echo "$FAKE_TOKEN" ;;
"account show --output none") test -z "$AZURE_FEDERATED_TOKEN_FILE" ;;
*) echo "az: $*" >&2; exit 2 ;;
esac
"#;

/// A fresh agent that has checked out one project, as Azure Pipelines does it.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) directory: tempfile::TempDir,
    pub(super) env: BTreeMap<String, String>,
}

impl Agent {
    /// An agent with a checkout of `project` at `branch`. The project's build has a step of its own.
    pub(super) fn new(project: &str, branch: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["home", "bin", "_work/_temp"] {
            fs::create_dir_all(path(name)).expect("made");
        }
        executable(&path("bin/az"), AZ);
        let context = Context::busybox(&format!("RUN echo '{project}' > /made && sleep 1"));
        let sources = path("_work/1/s");
        fs::create_dir_all(path("_work/1")).expect("made");
        succeed(Command::new(tool("cp")).arg("-a").arg(context.path()).arg(&sources));
        let uri = "https://contoso@dev.azure.com/contoso/shop/_git/".to_owned() + project;
        let git = "git init -q && git remote add origin \"$1\" && git add -A && \
                   git -c user.name=t -c user.email=t@example.test commit -qm one && \
                   git checkout -q --detach";
        succeed(shell(git, &["git"]).args(["sh", &uri]).current_dir(&sources));
        let tools = tool("buildctl").parent().expect("a directory").to_owned();
        let path_list = format!("{}:{}:/usr/bin:/bin", path("bin").display(), tools.display());
        let env = [
            ("PATH", path_list),
            ("HOME", path("home").display().to_string()),
            ("AGENT_TEMPDIRECTORY", path("_work/_temp").display().to_string()),
            ("BUILD_SOURCESDIRECTORY", sources.display().to_string()),
            ("SYSTEM_TEAMPROJECT", "shop".to_owned()),
            ("BUILD_REPOSITORY_NAME", project.to_owned()),
            ("BUILD_REPOSITORY_URI", uri),
            ("BUILD_SOURCEVERSION", "0".repeat(40)),
            ("BUILD_SOURCEBRANCH", format!("refs/heads/{branch}")),
            ("BUILD_SOURCEBRANCHNAME", branch.rsplit('/').next().expect("a name").to_owned()),
            ("BUILD_BUILDID", "4711".to_owned()),
            ("TF_BUILD", "True".to_owned()),
            ("FAKE_TOKEN", "token".to_owned()),
            ("REGISTRY", registry().host()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).into();
        Self { directory, env }
    }

    /// Sets a variable of the run.
    pub(super) fn set(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Runs one step: its script in the checkout, with only the environment that an agent gives.
    pub(super) fn step(&self, script: &str) -> Command {
        let mut step = shell(script.replace(STEPS, &format!("{KIT}/steps")), &[]);
        step.env_clear();
        step.envs(&self.env).current_dir(&self.env["BUILD_SOURCESDIRECTORY"]);
        step
    }

    /// Runs the steps of a pipeline until one fails. Returns the output of all.
    pub(super) fn pipeline(&mut self, name: &str) -> Output {
        let pipeline = yaml(&format!("pipelines/{name}.yaml")).remove(0);
        for (variable, value) in pipeline["variables"].as_object().expect("variables") {
            let value = value.as_str().expect("text").to_owned();
            // The test's own registry and fleet replace those of the example.
            self.env.entry(variable.to_uppercase()).or_insert(value);
        }
        let mut told = String::new();
        for script in scripts(&pipeline) {
            let output = run(&mut self.step(&self.expand(&script)));
            told += &text(&output);
            self.learn(&text(&output));
            if !output.status.success() {
                return Output { stdout: told.into(), ..output };
            }
        }
        Output { status: Default::default(), stdout: told.into(), stderr: Vec::new() }
    }

    /// A variable that a step sets is there for later steps.
    pub(super) fn learn(&mut self, output: &str) {
        let set =
            Regex::new(r"(?m)^##vso\[task\.setvariable variable=(\w+)\](.*)$").expect("valid");
        for found in set.captures_iter(output) {
            self.env.insert(found[1].to_uppercase(), found[2].to_owned());
        }
    }

    /// `$(name)` is replaced before a script runs, if there is a variable of that name.
    pub(super) fn expand(&self, script: &str) -> String {
        let variable = Regex::new(r"\$\((\w+)\)").expect("valid");
        let value = |found: &regex::Captures| {
            self.env.get(&found[1].to_uppercase()).map_or(found[0].to_owned(), Clone::clone)
        };
        variable.replace_all(script, value).into_owned()
    }
}

/// The scripts of a pipeline's steps, in order.
pub(super) fn scripts(pipeline: &Value) -> Vec<String> {
    let steps = pipeline["steps"].as_array().expect("steps").iter();
    let script = |step: &Value| {
        let script = step["script"].as_str().or_else(|| step["inputs"]["inlineScript"].as_str());
        script.map(str::to_owned)
    };
    steps.filter_map(script).collect()
}
