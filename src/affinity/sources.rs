//! One function for each source of a key in a Solve. A value that is missing or invalid is `None`.

use super::{
    facts::{Facts, text},
    normal,
};

/// The frontend options that the functions below read.
const OPTIONS: [&str; 8] = [
    "buildkit-lb-key",
    "build-arg:BUILDKIT_LB_KEY",
    "vcs:source",
    "vcs:localdir:dockerfile",
    "vcs:localdir:context",
    "context",
    "filename",
    "source",
];

/// Whether a source other than `opt:NAME` reads the frontend option `name`.
pub(super) fn read_option(name: &str) -> bool {
    OPTIONS.contains(&name)
}

/// The hint of the pipeline's author: metadata, `--opt buildkit-lb-key=…` or `--build-arg
/// BUILDKIT_LB_KEY=…`.
pub(super) fn hint(facts: &Facts) -> Option<String> {
    let metadata = facts.hint.as_ref().and_then(|hint| text(hint.as_bytes()));
    metadata.or_else(|| {
        let option = facts.option("buildkit-lb-key");
        option.or_else(|| facts.option("build-arg:BUILDKIT_LB_KEY")).map(str::to_owned)
    })
}

/// The repository of a local context, as buildx reports it, with the directory inside it because of monorepos.
pub(super) fn vcs(facts: &Facts) -> Option<String> {
    let repository = normal::repository(facts.option("vcs:source")?)?;
    let directory =
        facts.option("vcs:localdir:dockerfile").or_else(|| facts.option("vcs:localdir:context"));
    Some(within(repository, directory.and_then(normal::directory)))
}

/// The repository of a git or HTTP context, with its subdirectory.
pub(super) fn context(facts: &Facts) -> Option<String> {
    let context = facts.option("context")?;
    if !normal::is_remote(context) {
        return None;
    }
    Some(within(normal::repository(context)?, normal::subdirectory(context)))
}

fn within(repository: String, directory: Option<String>) -> String {
    match directory {
        Some(directory) => format!("{repository}#{directory}"),
        None => repository,
    }
}

/// The image that the build makes, without its registry. If there are several, the first in alphabetical order.
pub(super) fn image(facts: &Facts) -> Option<String> {
    facts.image.clone()
}

/// The reference to which the cache is pushed, or else from which it is pulled.
pub(super) fn cache_ref(facts: &Facts) -> Option<String> {
    facts.cache_ref.clone()
}

/// The address of the client.
pub(super) fn client(facts: &Facts) -> Option<String> {
    facts.client.clone()
}

/// The directory that buildx builds from, with the Dockerfile's name.
pub(super) fn shared_key(facts: &Facts) -> Option<String> {
    let name = normal::shared_key(facts.shared_key.as_deref()?)?;
    let file = facts.option("filename").filter(|file| *file != "Dockerfile");
    Some(within(name, file.and_then(normal::directory)))
}

/// The sources of a definition, or else its steps. For a gateway frontend, its image and the names of its build arguments.
pub(super) fn definition(facts: &Facts) -> Option<String> {
    facts.definition.clone()
}

/// The value of a frontend option.
pub(super) fn opt(facts: &Facts, name: &str) -> Option<String> {
    facts.option(name).map(str::to_owned)
}
