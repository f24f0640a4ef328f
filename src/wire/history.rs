//! The blobs that a BuildHistoryEvent names: logs, trace, error, results and attestations of its build.
//!
//! Only fields that a daemon fills itself are read, not those that repeat what a client has written into its build.
//! The field numbers are BuildKit's (api/services/control/control.proto, v0.32.2).

use super::fields::{self, Fields, Malformed, Value, entry};

/// A blob, as the descriptor in a record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob<'a> {
    /// The digest.
    pub digest: &'a [u8],
    /// Whether the blob is an image index, so that it names manifests.
    pub is_index: bool,
}

/// Whether a blob of `media_type` is an image index (OCI image specification, media types, and the type before it of Docker).
pub fn is_index(media_type: &[u8]) -> bool {
    const TYPES: [&[u8]; 2] = [
        b"application/vnd.oci.image.index.v1+json",
        b"application/vnd.docker.distribution.manifest.list.v2+json",
    ];
    TYPES.contains(&media_type)
}

/// Calls `visit` with each blob of `event`.
///
/// # Errors
/// `event` is no protobuf message. `visit` has been called for the part before the error.
pub fn blobs<'a>(event: &'a [u8], mut visit: impl FnMut(Blob<'a>)) -> Result<(), Malformed> {
    for field in Fields::new(event) {
        if let (2, Value::Bytes(record)) = field? {
            of_record(record, &mut visit)?;
        }
    }
    Ok(())
}

fn of_record<'a>(record: &'a [u8], visit: &mut impl FnMut(Blob<'a>)) -> Result<(), Malformed> {
    for field in Fields::new(record) {
        match field? {
            (8 | 13 | 18, Value::Bytes(descriptor)) => of_descriptor(descriptor, visit)?,
            (10, Value::Bytes(result)) => of_result(result, visit)?,
            (11, Value::Bytes(named)) => of_result(entry(named)?.1, visit)?,
            _ => {}
        }
    }
    Ok(())
}

fn of_result<'a>(result: &'a [u8], visit: &mut impl FnMut(Blob<'a>)) -> Result<(), Malformed> {
    for field in Fields::new(result) {
        match field? {
            (1 | 2, Value::Bytes(descriptor)) => of_descriptor(descriptor, visit)?,
            (3, Value::Bytes(numbered)) => of_descriptor(entry(numbered)?.1, visit)?,
            _ => {}
        }
    }
    Ok(())
}

fn of_descriptor<'a>(
    descriptor: &'a [u8],
    visit: &mut impl FnMut(Blob<'a>),
) -> Result<(), Malformed> {
    let is_index = is_index(fields::text(descriptor, 1)?);
    visit(Blob { digest: fields::text(descriptor, 2)?, is_index });
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `parts` as field `number` of a message.
    fn within(number: u32, parts: &[&[u8]]) -> Vec<u8> {
        let mut message = Vec::new();
        prost::encoding::bytes::encode(number, &parts.concat(), &mut message);
        message
    }

    fn found(event: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        let visit = |blob: Blob<'_>| {
            let index = if blob.is_index { "index " } else { "" };
            found.push(format!("{index}{}", String::from_utf8_lossy(blob.digest)));
        };
        blobs(event, visit).expect("a message");
        found
    }

    #[test]
    fn the_blobs_of_a_record_are_those_that_the_daemon_names() {
        let blob = |digest: &str| [within(1, &[b"type"]), within(2, &[digest.as_bytes()])].concat();
        let entry = |value: &[u8]| [within(1, &[b"key"]), within(2, &[value])].concat();
        // An entry whose key is a number.
        let index =
            [within(1, &[b"application/vnd.oci.image.index.v1+json"]), within(2, &[b"result"])];
        let numbered = [&[0x08, 0x01][..], &within(2, &[&index.concat()])].concat();
        let result = [within(2, &[&blob("attestation")]), within(3, &[&numbered])].concat();
        let record = [
            within(3, &[&entry(b"chosen by the client")]),
            within(4, &[&entry(&blob("an exporter's"))]),
            within(8, &[&blob("logs")]),
            within(9, &[&entry(b"an exporter's answer")]),
            within(10, &[&within(1, &[&blob("old")])]),
            within(11, &[&entry(&result)]),
            within(13, &[&blob("trace")]),
            within(18, &[&blob("error")]),
        ]
        .concat();
        let event = [&[0x08, 0x01][..], &within(2, &[&record])].concat();
        assert_eq!(found(&event), ["logs", "old", "attestation", "index result", "trace", "error"]);
        assert_eq!(found(&[]), [] as [&str; 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(event: Vec<u8>) {
            let _ = blobs(&event, |_| {});
        }
    }
}
