//! The values in a Solve from which a key can be made. They are small even if the request is large, because they are
//! kept while the build waits to be placed.

use std::collections::BTreeSet;

use twox_hash::XxHash3_64;

use super::{normal, rules::Rules};
use crate::wire::{
    fields::{Fields, Malformed, Value, text as field},
    solve::{Cache, CacheEntry, SolveField, visit_fields},
};

/// The longest value, in bytes. Longer ones are cut: no URL or image name is this long.
const MAX_VALUE_LEN: usize = 2048;

/// The most options and attributes that are read. A Solve of a large bake target has about fifty. A Solve with more than
/// this is an attack, and gets no key.
const MAX_ATTRS: usize = 4096;

/// The most operations of a definition that are read. The first ones identify the project.
const MAX_OPS: usize = 10_000;

/// The most repositories in the key of a definition.
const MAX_REPOSITORIES: usize = 8;

/// The most names of build arguments in the key of a gateway frontend.
const MAX_ARGS: usize = 64;

/// The values from which a key can be made.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Metadata [`super::rules::HINT_HEADER`] of the call.
    pub hint: Option<String>,
    /// Address of the client, without its port.
    pub client: Option<String>,
    /// The shared key that its Session declares (BuildKit session/session.go).
    pub shared_key: Option<String>,
    /// The frontend options that the rules use, if their value is not empty.
    pub(super) options: Vec<(String, String)>,
    /// The image that is built.
    pub(super) image: Option<String>,
    /// The reference of its cache.
    pub(super) cache_ref: Option<String>,
    /// The key of its definition, or of its gateway frontend.
    pub(super) definition: Option<String>,
}

impl Facts {
    /// Reads the fields of a serialised SolveRequest that `rules` use.
    ///
    /// # Errors
    /// `request` is not a protobuf message.
    pub fn read(request: &[u8], rules: &Rules) -> Result<Self, Malformed> {
        let mut reading =
            Reading { rules, attrs: 0, facts: Self::default(), found: Found::default() };
        let mut broken = Ok(());
        visit_fields(request, |field| broken = broken.and(reading.take(field)))?;
        broken?;
        let Reading { attrs, mut facts, found, .. } = reading;
        if attrs > MAX_ATTRS {
            return Ok(Self::default());
        }
        facts.cache_ref =
            found.caches.into_iter().flatten().next().map(|name| normal::image(&name));
        if rules.read_definition() {
            facts.definition = match definition(found.definition) {
                None => gateway(&facts, request)?,
                told => told,
            };
        }
        Ok(facts)
    }

    /// The value of a frontend option, unless it is empty.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// A request that is being read.
struct Reading<'a, 'r> {
    rules: &'r Rules,
    attrs: usize,
    facts: Facts,
    found: Found<'a>,
}

/// Values that are known only when the whole request has been read.
#[derive(Default)]
struct Found<'a> {
    definition: &'a [u8],
    /// References of a cache, the most specific first.
    caches: [Option<String>; 4],
}

impl<'a> Reading<'a, '_> {
    fn take(&mut self, field: SolveField<'a>) -> Result<(), Malformed> {
        match field {
            SolveField::Definition(definition) => self.found.definition = definition,
            SolveField::Option { name, value } if self.counts() => self.option(name, value),
            SolveField::ExporterAttr { name: b"name", value } if self.counts() => {
                self.images(value);
            }
            SolveField::ExporterAttr { .. } => self.attrs += 1,
            SolveField::Cache(cache) if self.counts() => self.cache(cache)?,
            _ => {}
        }
        Ok(())
    }

    fn counts(&mut self) -> bool {
        self.attrs += 1;
        self.attrs <= MAX_ATTRS
    }

    fn option(&mut self, name: &[u8], value: &[u8]) {
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| self.rules.read_option(name))
        else {
            return;
        };
        // If a name occurs twice, the last value counts, as in a map.
        self.facts.options.retain(|(known, _)| known != name);
        self.facts.options.extend(text(value).map(|value| (name.to_owned(), value)));
    }

    /// If there are several names, the first in alphabetical order.
    fn images(&mut self, names: &[u8]) {
        let names = text(names).unwrap_or_default();
        let names = names.split(',').map(normal::image_anywhere).filter(|name| !name.is_empty());
        self.facts.image = names.chain(self.facts.image.take()).min();
    }

    fn cache(&mut self, cache: Cache<'a>) -> Result<(), Malformed> {
        let (rank, reference) = match cache {
            Cache::Export(entry) => (0, self.reference(entry)?),
            Cache::OldExport(reference) => (1, text(reference)),
            Cache::Import(entry) => (2, self.reference(entry)?),
            Cache::OldImport(reference) => (3, text(reference)),
        };
        let known = &mut self.found.caches[rank];
        *known = known.take().or(reference);
        Ok(())
    }

    fn reference(&mut self, entry: CacheEntry<'a>) -> Result<Option<String>, Malformed> {
        let (mut reference, mut name) = (None, None);
        entry.attrs(|key, value| match key {
            b"ref" if self.counts() => reference = text(value),
            b"name" if self.counts() => name = text(value),
            _ => self.attrs += 1,
        })?;
        Ok(reference.or(name))
    }
}

/// The key of a definition: its repositories, or else its steps.
fn definition(definition: &[u8]) -> Option<String> {
    let ops = || {
        let ops = Fields::new(definition).filter_map(|field| match field {
            Ok((1, Value::Bytes(op))) => Some(Ok(op)),
            Ok(_other) => None,
            Err(error) => Some(Err(error)),
        });
        ops.take(MAX_OPS)
    };
    // SourceOp, and its identifier in it.
    let source = |op| field(field(op, 3).ok()?, 1).ok();
    let mut repositories = BTreeSet::new();
    let mut local = false;
    let mut count = 0;
    for op in ops() {
        count += 1;
        let Some(source) = source(op.ok()?).and_then(text) else { continue };
        local |= source.starts_with("local://");
        if ["git://", "http://", "https://"].iter().any(|scheme| source.starts_with(scheme)) {
            repositories.extend(normal::repository(&source));
            if repositories.len() > MAX_REPOSITORIES {
                repositories.pop_last();
            }
        }
    }
    if !repositories.is_empty() {
        return Some(Vec::from_iter(repositories).join(","));
    }
    let digest = |seed, bytes: &[u8]| XxHash3_64::oneshot_with_seed(seed, bytes);
    let ops = ops().flatten();
    // The operation of a local directory contains the client's session, and the operations that follow refer to it.
    let digest = if local {
        let mut sources: Vec<&[u8]> = ops.filter_map(source).map(<[u8]>::trim_ascii).collect();
        sources.sort_unstable();
        let sources = sources.into_iter().filter_map(text);
        sources.fold(0, |seed, source| digest(seed, source.as_bytes()))
    } else {
        ops.fold(0, digest)
    };
    (count > 0).then(|| format!("llb:{digest:016x}"))
}

/// The key of a gateway frontend: its image and the names of its build arguments.
fn gateway(facts: &Facts, request: &[u8]) -> Result<Option<String>, Malformed> {
    let Some(image) = facts.option("source").map(normal::image) else {
        return Ok(None);
    };
    // Every Dockerfile may use this frontend, so it does not identify a project.
    if image.rsplit('/').next().is_some_and(|name| name.starts_with("dockerfile")) {
        return Ok(None);
    }
    let mut names = BTreeSet::new();
    visit_fields(request, |field| match field {
        SolveField::Option { name, .. }
            if name.starts_with(b"build-arg:") || name == b"filename" =>
        {
            names.extend(text(name));
            if names.len() > MAX_ARGS {
                names.pop_last();
            }
        }
        _ => {}
    })?;
    Ok(Some(format!("{image}({})", Vec::from_iter(names).join(","))))
}

/// `bytes` without the space around them, unless nothing is left.
pub(super) fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_VALUE_LEN)]);
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
