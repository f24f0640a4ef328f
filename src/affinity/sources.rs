//! One function for each place in a Solve that tells the project. Whatever is missing or odd is `None`.

use prost::Message as _;
use twox_hash::XxHash3_64;

use super::{Facts, normal};
use crate::wire::{
    control::{Attr, SolveRequest},
    llb::{Definition, Op},
};

/// Longer values are cut: a URL or image name never is this long.
const MAX_VALUE_LEN: usize = 2048;

/// Operations of a definition that are read; more add nothing to what tells the project.
const MAX_OPS: usize = 10_000;

/// What the pipeline's author says: metadata, `--opt buildkit-lb-key=…` or `--build-arg
/// BUILDKIT_LB_KEY=…`.
pub(super) fn hint(facts: &Facts<'_>) -> Option<String> {
    let attrs = &facts.request.frontend_attrs;
    facts
        .hint
        .and_then(|hint| text(hint.as_bytes()))
        .or_else(|| value(attrs, "buildkit-lb-key"))
        .or_else(|| value(attrs, "build-arg:BUILDKIT_LB_KEY"))
}

/// The repository of a local context, which buildx reports; with the directory in it, for monorepos.
pub(super) fn vcs(facts: &Facts<'_>) -> Option<String> {
    let attrs = &facts.request.frontend_attrs;
    let repository = normal::repository(&value(attrs, "vcs:source")?);
    let directory = value(attrs, "vcs:localdir:dockerfile")
        .or_else(|| value(attrs, "vcs:localdir:context"))
        .and_then(|directory| normal::directory(&directory));
    Some(within(repository, directory))
}

/// The repository of a git or HTTP context, with its subdirectory.
pub(super) fn context(facts: &Facts<'_>) -> Option<String> {
    let context = value(&facts.request.frontend_attrs, "context")?;
    let remote = normal::is_remote(&context);
    remote.then(|| within(normal::repository(&context), normal::subdirectory(&context)))
}

fn within(repository: String, directory: Option<String>) -> String {
    match directory {
        Some(directory) => format!("{repository}#{directory}"),
        None => repository,
    }
}

/// The image the build makes, wherever it is pushed; of several, the first in alphabetical order.
pub(super) fn image(facts: &Facts<'_>) -> Option<String> {
    let request = facts.request;
    let exporters = request.exporters.iter().map(|exporter| &exporter.attrs);
    exporters
        .chain([&request.exporter_attrs_deprecated])
        .filter_map(|attrs| value(attrs, "name"))
        .flat_map(|names| names.split(',').map(normal::image_anywhere).collect::<Vec<_>>())
        .filter(|name| !name.is_empty())
        .min()
}

/// Where the cache is pushed to, else pulled from.
pub(super) fn cache_ref(facts: &Facts<'_>) -> Option<String> {
    let cache = facts.request.cache.as_ref()?;
    let entry = |attrs: &[Attr]| value(attrs, "ref").or_else(|| value(attrs, "name"));
    cache
        .exports
        .iter()
        .find_map(|export| entry(&export.attrs))
        .or_else(|| text(&cache.export_ref_deprecated))
        .or_else(|| cache.imports.iter().find_map(|import| entry(&import.attrs)))
        .or_else(|| cache.import_refs_deprecated.iter().find_map(|import| text(import)))
        .map(|reference| normal::image(&reference))
}

/// Who builds.
pub(super) fn client(facts: &Facts<'_>) -> Option<String> {
    facts.client.map(str::to_owned)
}

/// The directory that buildx builds from, with the Dockerfile's name.
pub(super) fn shared_key(facts: &Facts<'_>) -> Option<String> {
    let name = normal::shared_key(facts.shared_key?)?;
    let file = value(&facts.request.frontend_attrs, "filename").filter(|file| file != "Dockerfile");
    Some(within(name, file.and_then(|file| normal::directory(&file))))
}

/// What is built: the sources of a definition, else its steps; for a gateway frontend, its image with
/// the names of what it is given.
pub(super) fn definition(facts: &Facts<'_>) -> Option<String> {
    llb(facts.request).or_else(|| gateway(facts.request))
}

fn llb(request: &SolveRequest) -> Option<String> {
    let definition = Definition::decode(request.definition.clone()).ok()?;
    let ops = || definition.def.iter().take(MAX_OPS);
    let sources = ops().filter_map(|op| Op::decode(op.clone()).ok()?.source);
    let mut sources: Vec<String> = sources.filter_map(|source| text(&source.identifier)).collect();
    let mut repositories: Vec<String> = sources
        .iter()
        .filter(|source| ["git://", "http://", "https://"].iter().any(|s| source.starts_with(s)))
        .map(|source| normal::repository(source))
        .collect();
    repositories.sort();
    repositories.dedup();
    if !repositories.is_empty() {
        repositories.truncate(8);
        return Some(repositories.join(","));
    }
    let digest = |seed, bytes: &[u8]| XxHash3_64::oneshot_with_seed(seed, bytes);
    // A local directory's operation names its client's session, and all that follow name that operation.
    let digest = if sources.iter().any(|source| source.starts_with("local://")) {
        sources.sort();
        sources.iter().fold(0, |seed, source| digest(seed, source.as_bytes()))
    } else {
        ops().fold(0, |seed, op| digest(seed, op))
    };
    (!definition.def.is_empty()).then(|| format!("llb:{digest:016x}"))
}

fn gateway(request: &SolveRequest) -> Option<String> {
    let attrs = &request.frontend_attrs;
    let image = normal::image(&value(attrs, "source")?);
    // The frontend of every Dockerfile tells of no project.
    if image.rsplit('/').next().is_some_and(|name| name.starts_with("dockerfile")) {
        return None;
    }
    let mut names: Vec<String> = attrs
        .iter()
        .filter(|attr| attr.key.starts_with(b"build-arg:") || *attr.key == *b"filename")
        .filter_map(|attr| text(&attr.key))
        .take(64)
        .collect();
    names.sort();
    Some(format!("{image}({})", names.join(",")))
}

/// The value of a frontend option.
pub(super) fn opt(facts: &Facts<'_>, name: &str) -> Option<String> {
    value(&facts.request.frontend_attrs, name)
}

fn value(attrs: &[Attr], key: &str) -> Option<String> {
    attrs.iter().find(|attr| *attr.key == *key.as_bytes()).and_then(|attr| text(&attr.value))
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_VALUE_LEN)]);
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}
