use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::wire::control::{Attr, CacheOptions, CacheOptionsEntry, Exporter, SolveRequest};

fn attr(key: &str, value: impl Into<Vec<u8>>) -> Attr {
    Attr { key: key.to_owned().into(), value: value.into().into() }
}

fn read(request: &SolveRequest) -> Facts {
    Facts::read(&request.encode_to_vec(), &Rules::default()).expect("valid")
}

/// What a decoded request says of `name`: the last of its values, if that has any text.
fn decoded(attrs: &[Attr], name: &str) -> Option<String> {
    attrs.iter().rfind(|attr| *attr.key == *name.as_bytes()).and_then(|attr| text(&attr.value))
}

prop_compose! {
    fn attrs()(
        names in prop::collection::vec(
            prop::sample::select(vec!["vcs:source", "context", "filename", "name", "ref", "other"]),
            0..6,
        ),
        values in prop::collection::vec(".{0,20}", 6),
    ) -> Vec<Attr> {
        names.into_iter().zip(values).map(|(name, value)| attr(name, value)).collect()
    }
}

prop_compose! {
    fn requests()(
        options in attrs(),
        exporters in prop::collection::vec(attrs(), 0..3),
        exporter_attrs_deprecated in attrs(),
        exports in prop::collection::vec(attrs(), 0..3),
        imports in prop::collection::vec(attrs(), 0..3),
        old_imports in prop::collection::vec("[a-z]{0,3}", 0..3),
        old_export in "[a-z]{0,3}",
    ) -> SolveRequest {
        let entry = |attrs| CacheOptionsEntry { attrs, ..Default::default() };
        let exporter = |attrs| Exporter { attrs, ..Default::default() };
        SolveRequest {
            frontend_attrs: options,
            exporters: exporters.into_iter().map(exporter).collect(),
            exporter_attrs_deprecated,
            cache: Some(CacheOptions {
                export_ref_deprecated: old_export.into(),
                import_refs_deprecated: old_imports.into_iter().map(Into::into).collect(),
                exports: exports.into_iter().map(entry).collect(),
                imports: imports.into_iter().map(entry).collect(),
            }),
            ..Default::default()
        }
    }
}

proptest! {
    #[test]
    fn a_walk_finds_what_a_decoder_finds(request in requests()) {
        let facts = read(&request);
        for name in ["vcs:source", "context", "filename", "name"] {
            let expected = decoded(&request.frontend_attrs, name).filter(|_| name != "name");
            prop_assert_eq!(facts.option(name).map(str::to_owned), expected);
        }
        let exporters = request.exporters.iter().map(|exporter| &exporter.attrs);
        let attrs = exporters.chain([&request.exporter_attrs_deprecated]).flatten();
        let names = attrs.filter(|attr| *attr.key == *b"name").filter_map(|attr| text(&attr.value));
        let names: Vec<_> = names.collect();
        let images = names.iter().flat_map(|names| names.split(',')).map(normal::image_anywhere);
        prop_assert_eq!(facts.image, images.filter(|image| !image.is_empty()).min());
        let cache = request.cache.expect("given");
        let entry = |entry: &CacheOptionsEntry| {
            decoded(&entry.attrs, "ref").or_else(|| decoded(&entry.attrs, "name"))
        };
        let reference = cache.exports.iter().find_map(entry)
            .or_else(|| text(&cache.export_ref_deprecated))
            .or_else(|| cache.imports.iter().find_map(entry))
            .or_else(|| cache.import_refs_deprecated.iter().find_map(|import| text(import)));
        prop_assert_eq!(facts.cache_ref, reference.map(|name| normal::image(&name)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(request: Vec<u8>, definition: Vec<u8>) {
        let _ = Facts::read(&request, &Rules::default());
        let request = SolveRequest { definition: definition.into(), ..Default::default() };
        prop_assert!(Facts::read(&request.encode_to_vec(), &Rules::default()).is_ok());
    }
}

#[test]
fn a_request_of_more_attributes_than_a_build_has_gives_no_key() {
    let with = |count| {
        let mut frontend_attrs = vec![attr("vcs:source", "https://h/r")];
        frontend_attrs.resize(count, Attr::default());
        read(&SolveRequest { frontend_attrs, ..Default::default() }).option("vcs:source").is_some()
    };
    assert!(with(MAX_ATTRS));
    assert!(!with(MAX_ATTRS + 1));
}
