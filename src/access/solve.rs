//! The parts of a Solve that a rule may forbid: entitlements, exporters, and repositories that are pushed to.
//!
//! The request is walked over once, and nothing of it is kept. If a rule restricts something that the request
//! leaves open, the Solve is forbidden.

use std::borrow::Cow;

use super::{Allowed, Denied, Grant, allowed, denied};
use crate::{
    identity::Identity,
    wire::{
        fields::Malformed,
        solve::{Cache, CacheEntry, SolveField, visit_fields},
    },
};

/// The longest text of a request in an error, in bytes.
const MAX_SHOWN: usize = 128;

impl Grant {
    /// Checks that `client` may have what a serialised SolveRequest asks for.
    ///
    /// # Errors
    /// `request` is no protobuf message.
    pub fn check_solve(
        &self,
        client: Option<&Identity>,
        request: &[u8],
    ) -> Result<Result<(), Denied>, Malformed> {
        let mut forbidden = None;
        let mut old = Old::default();
        visit_fields(request, |field| {
            let what = match field {
                SolveField::Entitlement(name) => self.entitlement(&text(name)),
                SolveField::Exporter(exporter) => self.exporter(exporter),
                SolveField::OldExporter(kind) => {
                    old.kind = Some(kind);
                    None
                }
                SolveField::ExporterAttr { name, value } => {
                    old.push.take(name, value);
                    None
                }
                SolveField::Cache(cache) => self.cache(cache),
                _ => None,
            };
            if forbidden.is_none() {
                forbidden = what;
            }
        })?;
        let forbidden = forbidden.or_else(|| self.old_exporter(&old));
        Ok(forbidden.map_or(Ok(()), |what| Err(denied(client, what))))
    }

    fn entitlement(&self, name: &str) -> Option<String> {
        // An entitlement may have more after its name, as in `device=gpu,alias=x`. The rest only says which device
        // is meant.
        let allowed = self.entitlements.iter().any(|pattern| pattern.fits(name));
        (!allowed).then(|| format!("use the entitlement {}", shown(name)))
    }

    fn exporter(&self, exporter: CacheEntry<'_>) -> Option<String> {
        let mut push = Push::default();
        let read = exporter.attrs(|name, value| push.take(name, value));
        let kind = self.kinds(&self.exporters, "exporter", exporter);
        kind.or_else(|| match read {
            Ok(()) => self.pushes(&push),
            Err(Malformed) => Some("use an exporter that cannot be read".to_owned()),
        })
    }

    fn old_exporter(&self, old: &Old<'_>) -> Option<String> {
        let kind = text(old.kind.filter(|kind| !kind.is_empty())?);
        self.kind(&self.exporters, "exporter", &kind).or_else(|| self.pushes(&old.push))
    }

    fn cache(&self, cache: Cache<'_>) -> Option<String> {
        match cache {
            Cache::OldExport(reference) if !reference.is_empty() => {
                let kind = self.kind(&self.cache_exporters, "cache exporter", "registry");
                kind.or_else(|| self.push_to(&text(reference)))
            }
            Cache::Export(entry) => {
                let mut forbidden = self.kinds(&self.cache_exporters, "cache exporter", entry);
                let read = entry.attrs(|name, value| {
                    if name == b"ref" && !value.is_empty() && forbidden.is_none() {
                        forbidden = self.push_to(&text(value));
                    }
                });
                match read {
                    Ok(()) => forbidden,
                    Err(Malformed) => Some("use a cache exporter that cannot be read".to_owned()),
                }
            }
            _ => None,
        }
    }

    /// The first kind of `entry` that is not allowed. An entry without a kind has the empty one.
    fn kinds(&self, kinds: &Allowed, what: &str, entry: CacheEntry<'_>) -> Option<String> {
        let (mut count, mut forbidden) = (0, None);
        let read = entry.kinds(|kind| {
            count += 1;
            forbidden = forbidden.take().or_else(|| self.kind(kinds, what, &text(kind)));
        });
        match read {
            Ok(()) if count == 0 => self.kind(kinds, what, ""),
            Ok(()) => forbidden,
            Err(Malformed) => Some(format!("use {what} that cannot be read")),
        }
    }

    fn kind(&self, kinds: &Allowed, what: &str, kind: &str) -> Option<String> {
        (!allowed(kinds, kind)).then(|| format!("use the {what} {}", shown(kind)))
    }

    fn pushes(&self, push: &Push<'_>) -> Option<String> {
        if !push.pushes || self.push.is_none() {
            return None;
        }
        if push.names.is_empty() {
            return Some("push under a name that the Solve does not tell".to_owned());
        }
        push.names
            .iter()
            .find_map(|names| text(names).split(',').find_map(|name| self.push_to(name)))
    }

    fn push_to(&self, reference: &str) -> Option<String> {
        self.push.as_ref()?;
        let name = repository(reference.trim());
        (!allowed(&self.push, &name)).then(|| format!("push to {}", shown(&name)))
    }
}

/// The only exporter, from clients before v0.13.
#[derive(Debug, Default)]
struct Old<'a> {
    kind: Option<&'a [u8]>,
    push: Push<'a>,
}

/// The repositories that an exporter pushes to.
#[derive(Debug, Default)]
struct Push<'a> {
    pushes: bool,
    /// All values of the attribute, because it is not specified which of them a daemon uses.
    names: Vec<&'a [u8]>,
}

impl<'a> Push<'a> {
    fn take(&mut self, name: &'a [u8], value: &'a [u8]) {
        match name {
            b"push" => self.pushes |= !is_false(value),
            b"name" => self.names.push(value),
            _ => {}
        }
    }
}

/// Whether a daemon reads `value` as false (Go's strconv.ParseBool). It reads an empty value as true.
fn is_false(value: &[u8]) -> bool {
    [&b"0"[..], b"f", b"F", b"false", b"False", b"FALSE"].contains(&value)
}

/// The registry and the repository of a reference, as a daemon reads them (distribution/reference): `app:1` is
/// `docker.io/library/app`.
fn repository(reference: &str) -> String {
    let name = reference.split('@').next().unwrap_or_default();
    let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
    let name = &name[..tag.unwrap_or(name.len())];
    match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':']) || host == "localhost" || host != host.to_lowercase() =>
        {
            match host.to_ascii_lowercase().as_str() {
                "docker.io" | "index.docker.io" => hub(path),
                host => format!("{host}/{path}"),
            }
        }
        _ => hub(name),
    }
}

fn hub(path: &str) -> String {
    match path.contains('/') {
        true => format!("docker.io/{path}"),
        false => format!("docker.io/library/{path}"),
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(MAX_SHOWN).collect();
    format!("`{}`", short.escape_debug())
}
