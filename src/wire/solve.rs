//! The fields of a SolveRequest that say where its build belongs.
//!
//! The field numbers are BuildKit's (api/services/control/control.proto, v0.32.2). Other fields concern only the
//! daemon. A field with an unexpected wire type is skipped, because the daemon can best say what is wrong with it.

use super::fields::{Fields, Malformed, Value, entry};

/// A field of a SolveRequest that the proxy uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SolveField<'a> {
    /// The ref of the build.
    Ref(&'a [u8]),
    /// The serialised definition of the build.
    Definition(&'a [u8]),
    /// The session that the client opens for this build.
    Session(&'a [u8]),
    /// The session that answers questions about the source policy.
    SourcePolicySession(&'a [u8]),
    /// Whether the client uses this build as a probe, and shows it to nobody.
    Internal(bool),
    /// An option of the frontend.
    Option {
        /// The name of the option.
        name: &'a [u8],
        /// The value of the option.
        value: &'a [u8],
    },
    /// An entitlement that the build asks for.
    Entitlement(&'a [u8]),
    /// An exporter. Its attributes follow, each as a [`SolveField::ExporterAttr`].
    Exporter(CacheEntry<'a>),
    /// The kind of the only exporter, from clients before v0.13.
    OldExporter(&'a [u8]),
    /// An attribute of an exporter.
    ExporterAttr {
        /// The name of the attribute.
        name: &'a [u8],
        /// The value of the attribute.
        value: &'a [u8],
    },
    /// A place to which a cache is pushed, or from which it is pulled.
    Cache(Cache<'a>),
}

/// An entry of a request's cache exports or imports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache<'a> {
    /// An entry of `exports`.
    Export(CacheEntry<'a>),
    /// The only export, from clients before v0.4.
    OldExport(&'a [u8]),
    /// An entry of `imports`.
    Import(CacheEntry<'a>),
    /// An import, from clients before v0.4.
    OldImport(&'a [u8]),
}

/// A serialised CacheOptionsEntry or Exporter, which consists of a kind and attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheEntry<'a>(&'a [u8]);

impl<'a> CacheEntry<'a> {
    /// Calls `visit` with each value of the kind. A daemon uses the last one.
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

    /// Calls `visit` with the name and the value of each attribute.
    ///
    /// # Errors
    /// The entry is no protobuf message.
    pub fn attrs(self, visit: impl FnMut(&'a [u8], &'a [u8])) -> Result<(), Malformed> {
        attrs(self.0, visit)
    }
}

/// Calls `visit` with each field of `request`, in the order in the message.
///
/// # Errors
/// `request` is no protobuf message. `visit` has been called for the part before the error.
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

/// Visits the attributes of an Exporter or a CacheOptionsEntry. In both, the kind is field 1 and the attributes are
/// field 2.
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
