//! What a SolveRequest tells of where its build belongs, field by field.
//!
//! Numbers are BuildKit's (api/services/control/control.proto, v0.32.2); the other fields are the
//! daemon's alone. A field of another wire type than expected is passed over: a daemon says best what is
//! wrong with it.

use super::fields::{Fields, Malformed, Value, entry};

/// One field of a SolveRequest that the proxy has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SolveField<'a> {
    /// The build's ref.
    Ref(&'a [u8]),
    /// A serialised build definition.
    Definition(&'a [u8]),
    /// The session that the client opens for this build.
    Session(&'a [u8]),
    /// The session that answers for the source policy.
    SourcePolicySession(&'a [u8]),
    /// Whether this is a probe of the client's own.
    Internal(bool),
    /// A frontend option.
    Option {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Something that it asks to be allowed to do.
    Entitlement(&'a [u8]),
    /// An exporter. Its attributes come after it, each as [`SolveField::ExporterAttr`].
    Exporter(CacheEntry<'a>),
    /// The kind of the one exporter of clients before v0.13.
    OldExporter(&'a [u8]),
    /// An attribute of an exporter.
    ExporterAttr {
        /// Its name.
        name: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Where a cache is pushed to or pulled from.
    Cache(Cache<'a>),
}

/// One entry of a request's cache exports or imports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache<'a> {
    /// An entry of `exports`.
    Export(CacheEntry<'a>),
    /// The one export of clients before v0.4.
    OldExport(&'a [u8]),
    /// An entry of `imports`.
    Import(CacheEntry<'a>),
    /// An import of clients before v0.4.
    OldImport(&'a [u8]),
}

/// A serialised CacheOptionsEntry or Exporter: a kind, and attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheEntry<'a>(&'a [u8]);

impl<'a> CacheEntry<'a> {
    /// Calls `visit` with each value of its kind; a daemon takes the last.
    ///
    /// # Errors
    /// The entry is no protobuf message.
    pub fn kinds(self, mut visit: impl FnMut(&'a [u8])) -> Result<(), Malformed> {
        for field in Fields::new(self.0) {
            if let (1, Value::Bytes(kind)) = field? {
                visit(kind);
            }
        }
        Ok(())
    }

    /// Calls `visit` with the name and value of each attribute.
    ///
    /// # Errors
    /// The entry is no protobuf message.
    pub fn attrs(self, visit: impl FnMut(&'a [u8], &'a [u8])) -> Result<(), Malformed> {
        attrs(self.0, visit)
    }
}

/// Calls `visit` with each field of `request`, in the order they stand in it.
///
/// # Errors
/// `request` is no protobuf message. `visit` has been called with what came before.
pub fn visit_fields<'a>(
    request: &'a [u8],
    mut visit: impl FnMut(SolveField<'a>),
) -> Result<(), Malformed> {
    for field in Fields::new(request) {
        match field? {
            (1, Value::Bytes(id)) => visit(SolveField::Ref(id)),
            (2, Value::Bytes(definition)) => visit(SolveField::Definition(definition)),
            (3, Value::Bytes(kind)) => visit(SolveField::OldExporter(kind)),
            (4, Value::Bytes(attr)) => {
                let (name, value) = entry(attr)?;
                visit(SolveField::ExporterAttr { name, value });
            }
            (5, Value::Bytes(id)) => visit(SolveField::Session(id)),
            (7, Value::Bytes(attr)) => {
                let (name, value) = entry(attr)?;
                visit(SolveField::Option { name, value });
            }
            (8, Value::Bytes(cache)) => caches(cache, |cache| visit(SolveField::Cache(cache)))?,
            (9, Value::Bytes(name)) => visit(SolveField::Entitlement(name)),
            (11, Value::Number(internal)) => visit(SolveField::Internal(internal != 0)),
            (13, Value::Bytes(exporter)) => {
                visit(SolveField::Exporter(CacheEntry(exporter)));
                attrs(exporter, |name, value| visit(SolveField::ExporterAttr { name, value }))?;
            }
            (15, Value::Bytes(id)) => visit(SolveField::SourcePolicySession(id)),
            _ => {}
        }
    }
    Ok(())
}

fn caches<'a>(options: &'a [u8], mut visit: impl FnMut(Cache<'a>)) -> Result<(), Malformed> {
    for field in Fields::new(options) {
        match field? {
            (1, Value::Bytes(reference)) => visit(Cache::OldExport(reference)),
            (2, Value::Bytes(reference)) => visit(Cache::OldImport(reference)),
            (4, Value::Bytes(entry)) => visit(Cache::Export(CacheEntry(entry))),
            (5, Value::Bytes(entry)) => visit(Cache::Import(CacheEntry(entry))),
            _ => {}
        }
    }
    Ok(())
}

/// Exporter and CacheOptionsEntry alike: type = 1, attrs = 2.
fn attrs<'a>(
    message: &'a [u8],
    mut visit: impl FnMut(&'a [u8], &'a [u8]),
) -> Result<(), Malformed> {
    for field in Fields::new(message) {
        if let (2, Value::Bytes(attr)) = field? {
            let (name, value) = entry(attr)?;
            visit(name, value);
        }
    }
    Ok(())
}
