//! What a release has put into the registry.

use std::process::{Command, Output};

use serde_json::Value;

use crate::{
    VERSION, list,
    runner::{Hosts, Runner},
    support::{
        client::{run, succeed, text},
        tools::tool,
    },
};

/// A release, by the digests that its last step prints.
#[derive(Debug)]
pub(super) struct Published<'a> {
    runner: &'a Runner,
    image: String,
    chart: String,
}

impl<'a> Published<'a> {
    /// Finds the image `name` and the chart of its release in what a step has printed.
    pub(super) fn told(runner: &'a Runner, told: &str, name: &str) -> Self {
        let registry = &Hosts::shared().registry;
        let find = |name: &str| {
            let start = format!("{}@sha256:", registry.image(name));
            let found = told.lines().find(|line| line.starts_with(&start));
            found.unwrap_or_else(|| unreachable!("no {start} in {told}")).to_owned()
        };
        let charts = name.strip_suffix("buildkit-lb").expect("the name's end");
        let charts = match charts {
            "" => "charts/buildkit-lb".to_owned(),
            _ => format!("{name}/charts/buildkit-lb"),
        };
        Self { runner, image: find(name), chart: find(&charts) }
    }

    /// The repository of a reference with a digest.
    fn repository(reference: &str) -> &str {
        reference.split_once('@').expect("a digest").0
    }

    /// The manifest with that tag or digest in the image's repository.
    fn manifest(&self, which: &str) -> Value {
        let registry = &Hosts::shared().registry;
        let name = Self::repository(&self.image);
        let name = name.strip_prefix(&registry.image("")).expect("in the registry");
        serde_json::from_str(&registry.manifest(name, which)).expect("JSON")
    }

    /// Runs a command of helm about the chart in the registry, of the version of the release.
    fn helm(&self, args: &[&str]) -> String {
        let url = format!("oci://{}", Self::repository(&self.chart));
        let mut helm = Command::new(tool("helm"));
        let config = Hosts::shared().registry.docker_config().join("config.json");
        helm.env("HELM_REGISTRY_CONFIG", config).args(args);
        succeed(helm.args([&*url, "--version", VERSION, "--plain-http"]))
    }

    /// The chart's `Chart.yaml`.
    pub(super) fn metadata(&self) -> String {
        self.helm(&["show", "chart"])
    }

    fn verify(&self, reference: &str) -> Output {
        let mut cosign = Command::new(tool("cosign"));
        cosign.env("HOME", self.runner.path(""));
        cosign.env("DOCKER_CONFIG", Hosts::shared().registry.docker_config());
        cosign.args(["verify", "--insecure-ignore-tlog=true", "--key"]);
        run(cosign.arg(self.runner.path("cosign.pub")).arg(reference))
    }
}

/// The release has every platform, with its packages and its origin, and a chart that runs this image. All of it is
/// signed.
pub(super) fn assert_complete(published: &Published) {
    let index = published.manifest(VERSION);
    let digest = published.image.split_once('@').expect("a digest").1;
    assert_eq!(index, published.manifest(digest), "the tag names what is signed");
    let of = |architecture: &str| -> Vec<&str> {
        let all = list(&index["manifests"]);
        let found = all.filter(|one| one["platform"]["architecture"] == architecture);
        found.map(|one| one["digest"].as_str().expect("a digest")).collect()
    };
    assert_eq!((of("amd64").len(), of("arm64").len()), (1, 1), "{index}");
    let attestations = of("unknown");
    assert_eq!(attestations.len(), 2, "{index}");
    for attestation in attestations {
        let told = published.manifest(attestation).to_string();
        assert!(told.contains("https://spdx.dev/Document"), "packages: {told}");
        assert!(told.contains("https://slsa.dev/provenance"), "origin: {told}");
    }

    let metadata = published.metadata();
    assert!(metadata.contains(&format!("image: {}", published.image)), "{metadata}");
    let rendered = published.helm(&["template", "--kube-version", "1.36.3", "buildkit-lb"]);
    let image = format!("image: {}:{VERSION}\n", Published::repository(&published.image));
    assert!(rendered.contains(&image), "{rendered}");

    let repository = Published::repository(&published.image);
    let platform = format!("{repository}@{}", of("arm64")[0]);
    for signed in [&published.image, &published.chart, &platform] {
        let verified = published.verify(signed);
        assert!(verified.status.success(), "{}", text(&verified));
    }
    let unsigned = Hosts::shared().registry.image("generator:1");
    assert!(!published.verify(&unsigned).status.success(), "{unsigned} was not signed");
}
