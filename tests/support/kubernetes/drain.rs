//! The container of a daemon's pod that drains the daemon when the pod ends, and the volumes of that container.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use super::{
    Server,
    pod::{HOST, PodDaemon},
};
use crate::support::{child::Guarded, tools::tool};

/// The name of the container in the pod.
const NAME: &str = "drain";

/// A container that runs in the network of its pod.
#[derive(Debug)]
pub(crate) struct DrainContainer {
    process: Guarded,
    volumes: Volumes,
}

impl DrainContainer {
    /// Starts the container of `pod`, if the pod has one.
    ///
    /// There is no name server of a cluster and no Service. The name of the proxies leads to this machine, and the
    /// pod's annotation `test/admin-port` has their port.
    pub(crate) fn start(pod: &Value, daemon: &PodDaemon, volumes: Volumes) -> Option<Self> {
        let container = container(pod, NAME)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &pod["metadata"];
        let admin = text(&metadata["annotations"]["test/admin-port"]);
        let args = container["args"].as_array()?.iter().map(|arg| {
            let arg = text(arg)
                .replace("$(POD_NAME)", &text(&metadata["name"]))
                .replace("$(POD_NAMESPACE)", &text(&metadata["namespace"]))
                .replace("$(POD_IPS)", daemon.ip());
            match arg.strip_prefix("--proxy=") {
                Some(name) if name.ends_with(".svc.cluster.local.:9090") => {
                    format!("--proxy={HOST}:{admin}")
                }
                _ => volumes.locate(container, &arg),
            }
        });
        let enter = daemon.inside(&[]);
        let enter = enter.get_args().map(|arg| arg.to_string_lossy().into_owned());
        let command: Vec<_> =
            enter.chain([env!("CARGO_BIN_EXE_buildkit-lb").to_owned()]).chain(args).collect();
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        let process = Guarded::start(&tool("nsenter"), &command);
        Some(Self { process, volumes })
    }

    /// Tells the container that the pod ends.
    pub(crate) fn terminate(&self) {
        self.process.signal("TERM");
    }

    /// A command of the container `buildkitd`, with the paths of its volumes on this machine.
    pub(crate) fn locate(&self, pod: &Value, command: &[String]) -> Vec<String> {
        let daemon = container(pod, "buildkitd").expect("a daemon");
        command.iter().map(|word| self.volumes.locate(daemon, word)).collect()
    }
}

fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["spec"]["containers"].as_array()?.iter().find(|container| container["name"] == name)
}

/// Makes a directory for each volume that is a Secret or empty.
#[derive(Debug)]
pub(crate) struct Volumes {
    names: BTreeMap<String, String>,
    _directory: tempfile::TempDir,
}

impl Volumes {
    pub(crate) fn of(server: &Server, pod: &Value) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let mut names = BTreeMap::new();
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let name = volume["name"].as_str().expect("a name");
            let path = directory.path().join(name);
            fs::create_dir(&path).expect("a directory");
            if let Some(secret) = volume["secret"]["secretName"].as_str() {
                for (key, value) in server.secret(namespace, secret) {
                    fs::write(path.join(key), value).expect("written");
                }
            }
            names.insert(name.to_owned(), path.to_string_lossy().into_owned());
        }
        Self { names, _directory: directory }
    }

    /// The flags of the container `buildkitd` that concern certificates.
    pub(crate) fn certificates(&self, pod: &Value) -> Vec<String> {
        let Some(daemon) = container(pod, "buildkitd") else { return Vec::new() };
        let args = daemon["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let args = args.filter(|arg| arg.starts_with("--tls"));
        args.map(|arg| self.locate(daemon, arg)).collect()
    }

    /// `text` of `container`, with the paths of its volumes on this machine.
    fn locate(&self, container: &Value, text: &str) -> String {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        mounts.fold(text.to_owned(), |text, mount| {
            let name = mount["name"].as_str().unwrap_or_default();
            match (mount["mountPath"].as_str(), self.names.get(name)) {
                (Some(path), Some(local)) => {
                    text.replace(&format!("{path}/"), &format!("{local}/"))
                }
                _ => text,
            }
        })
    }
}
