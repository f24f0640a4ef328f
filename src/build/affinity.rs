//! The affinity key: what two builds of one project have in common, wherever they run.
//!
//! Left out on purpose: tags, commits, build arguments, paths and random names, which differ between
//! jobs; target and platform too, for the targets of one project share stages.

use crate::wire::control::{Attr, SolveRequest};

/// Longer values are cut before hashing: a URL or image name never is this long.
const MAX_VALUE_LEN: usize = 2048;

/// A key and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityKey {
    /// The normalised text that is hashed.
    pub key: String,
    /// The source's word in logs and metrics.
    pub source: &'static str,
}

type Source = fn(&SolveRequest) -> Option<String>;

/// Sources in order: the first that the build has decides.
const SOURCES: [(&str, Source); 5] = [
    ("hint", hint),
    ("vcs", vcs),
    ("context", context),
    ("cache_ref", cache_ref),
    ("image", image),
];

/// The key of a build, or `None` if nothing in its Solve tells its project.
pub fn key(request: &SolveRequest) -> Option<AffinityKey> {
    SOURCES.iter().find_map(|(source, read)| {
        read(request).filter(|key| !key.is_empty()).map(|key| AffinityKey { key, source })
    })
}

/// What the pipeline's author says: `--opt buildkit-lb-key=…` or `--build-arg BUILDKIT_LB_KEY=…`.
fn hint(request: &SolveRequest) -> Option<String> {
    let attrs = &request.frontend_attrs;
    value(attrs, "buildkit-lb-key").or_else(|| value(attrs, "build-arg:BUILDKIT_LB_KEY"))
}

/// The repository of a local context, which buildx reports; with the directory in it, for monorepos.
fn vcs(request: &SolveRequest) -> Option<String> {
    let attrs = &request.frontend_attrs;
    let repository = repository(&value(attrs, "vcs:source")?);
    let directory = value(attrs, "vcs:localdir:dockerfile")
        .or_else(|| value(attrs, "vcs:localdir:context"))
        .unwrap_or_default()
        .replace('\\', "/");
    match directory.trim_start_matches("./").trim_end_matches('/') {
        "" | "." => Some(repository),
        directory => Some(format!("{repository}#{directory}")),
    }
}

/// The repository of a git or HTTP context, with its subdirectory.
fn context(request: &SolveRequest) -> Option<String> {
    let context = value(&request.frontend_attrs, "context")?;
    let remote = context.contains("://") || context.starts_with("git@");
    if !remote || context.starts_with("input:") {
        return None;
    }
    let (url, fragment) = context.split_once('#').unwrap_or((&context, ""));
    match fragment.split_once(':') {
        Some((_revision, directory)) if !directory.is_empty() => {
            Some(format!("{}#{}", repository(url), directory.trim_matches('/')))
        }
        _ => Some(repository(url)),
    }
}

/// Where the cache is pushed to, else pulled from.
fn cache_ref(request: &SolveRequest) -> Option<String> {
    let cache = request.cache.as_ref()?;
    let entry = |attrs: &[Attr]| value(attrs, "ref").or_else(|| value(attrs, "name"));
    cache
        .exports
        .iter()
        .find_map(|export| entry(&export.attrs))
        .or_else(|| text(&cache.export_ref_deprecated))
        .or_else(|| cache.imports.iter().find_map(|import| entry(&import.attrs)))
        .or_else(|| cache.import_refs_deprecated.iter().find_map(|import| text(import)))
        .map(|reference| image_repository(&reference))
}

/// The image the build makes; of several, the first in alphabetical order.
fn image(request: &SolveRequest) -> Option<String> {
    let exporters = request.exporters.iter().map(|exporter| &exporter.attrs);
    exporters
        .chain([&request.exporter_attrs_deprecated])
        .filter_map(|attrs| value(attrs, "name"))
        .flat_map(|names| names.split(',').map(image_repository).collect::<Vec<_>>())
        .filter(|name| !name.is_empty())
        .min()
}

fn value(attrs: &[Attr], key: &str) -> Option<String> {
    attrs.iter().find(|attr| *attr.key == *key.as_bytes()).and_then(|attr| text(&attr.value))
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_VALUE_LEN)]);
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// `https://user@Host/team/app.git?x#y` and `git@host:team/app` both become `host/team/app`.
fn repository(url: &str) -> String {
    let url = url.split(['#', '?']).next().unwrap_or_default();
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, url),
    };
    let (authority, path) = match scheme {
        Some(_) => rest.split_once('/').unwrap_or((rest, "")),
        // scp-like: user@host:path
        None => rest.split_once(':').unwrap_or((rest, "")),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path);
    format!("{}/{path}", host.to_ascii_lowercase())
}

/// `Registry/team/app:tag@sha256:…` becomes `registry/team/app`.
fn image_repository(reference: &str) -> String {
    let name = reference.trim().split('@').next().unwrap_or_default();
    let end = match (name.rfind(':'), name.rfind('/')) {
        (Some(colon), slash) if slash.is_none_or(|slash| colon > slash) => colon,
        _ => name.len(),
    };
    name[..end].to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::control::{CacheOptions, CacheOptionsEntry, Exporter};

    fn attrs(pairs: &[(&str, &str)]) -> Vec<Attr> {
        let attr = |(key, value): &(&str, &str)| Attr {
            key: (*key).to_owned().into(),
            value: (*value).to_owned().into(),
        };
        pairs.iter().map(attr).collect()
    }

    fn of_attrs(pairs: &[(&str, &str)]) -> Option<(String, &'static str)> {
        let frontend_attrs = attrs(pairs);
        key(&SolveRequest { frontend_attrs, ..Default::default() }).map(|key| (key.key, key.source))
    }

    #[test]
    fn two_jobs_of_one_project_have_one_key() {
        for url in [
            "https://org@dev.azure.com/org/proj/_git/app",
            "https://DEV.azure.com/org/proj/_git/app",
            "https://token:x@dev.azure.com/org/proj/_git/app.git",
        ] {
            let attrs = [("vcs:source", url), ("vcs:revision", url), ("vcs:localdir:context", ".")];
            let key = "dev.azure.com/org/proj/_git/app".to_owned();
            assert_eq!(of_attrs(&attrs), Some((key, "vcs")));
        }
        assert_eq!(repository("git@github.com:team/app.git"), "github.com/team/app");
        assert_eq!(repository("ssh://git@github.com/team/app"), "github.com/team/app");
    }

    #[test]
    fn parts_of_a_monorepo_differ() {
        let source = ("vcs:source", "https://h/r");
        let at = |directory| of_attrs(&[source, ("vcs:localdir:context", directory)]);
        assert_eq!(at("./services/a/"), Some(("h/r#services/a".into(), "vcs")));
        assert_eq!(at("services\\a"), at("services/a"));
        assert_ne!(at("services/a"), at("services/b"));
    }

    #[test]
    fn a_git_context_drops_its_revision() {
        let key = |context| of_attrs(&[("context", context)]);
        assert_eq!(key("https://h/team/app.git#main:sub"), key("https://h/team/app#v2:sub"));
        assert_ne!(key("https://h/team/app.git#main"), key("https://h/team/other.git#main"));
        assert_eq!(key("input:0-b"), None);
    }

    #[test]
    fn an_image_name_loses_tag_and_digest_only() {
        assert_eq!(image_repository("Reg:5000/Team/app:v1"), "reg:5000/team/app");
        assert_eq!(image_repository("reg:5000/team/app"), "reg:5000/team/app");
        assert_eq!(image_repository("app@sha256:aa"), "app");
        let request = SolveRequest {
            exporters: vec![Exporter {
                r#type: "image".into(),
                attrs: attrs(&[("name", "b.io/x:1,a.io/x:2")]),
            }],
            ..Default::default()
        };
        assert_eq!(key(&request).map(|key| key.key), Some("a.io/x".into()));
    }

    #[test]
    fn the_cache_comes_before_the_image() {
        let request = SolveRequest {
            cache: Some(CacheOptions {
                imports: vec![CacheOptionsEntry {
                    r#type: "registry".into(),
                    attrs: attrs(&[("ref", "acr.io/cache/app:main")]),
                }],
                ..Default::default()
            }),
            exporter_attrs_deprecated: attrs(&[("name", "acr.io/app:17")]),
            ..Default::default()
        };
        let expected = AffinityKey { key: "acr.io/cache/app".into(), source: "cache_ref" };
        assert_eq!(key(&request), Some(expected));
    }

    proptest! {
        #[test]
        fn any_value_gives_a_key_or_none(values in prop::collection::vec(any::<Vec<u8>>(), 5)) {
            let names = ["vcs:source", "context", "vcs:localdir:context", "filename", "target"];
            let attr = |(name, value): (&str, Vec<u8>)| Attr {
                key: name.to_owned().into(),
                value: value.into(),
            };
            let frontend_attrs = names.into_iter().zip(values).map(attr).collect();
            let _ = key(&SolveRequest { frontend_attrs, ..Default::default() });
        }
    }
}
