//! Makes the records of a fleet fit into one message, by cutting texts that are only for people.

use bytes::Bytes;

use crate::wire::fields::{Fields, Malformed, Value};

/// The end of a description that was cut.
const MARK: &[u8] = " … (cut)".as_bytes();

/// The field numbers of DiskUsageResponse.record and UsageRecord.Description (BuildKit control.proto).
const RECORD: u32 = 1;
const DESCRIPTION: u32 = 9;

/// All records of `usages` in one message of at most `limit` bytes. If necessary, the longest descriptions are cut to
/// one length, and everything else stays as it came. Returns `None` if that is not enough.
pub(super) fn fitting(usages: &[Bytes], limit: usize) -> Option<Vec<u8>> {
    let len: usize = usages.iter().map(Bytes::len).sum();
    if len <= limit {
        return Some(usages.concat());
    }
    let mut lengths = Vec::new();
    for usage in usages {
        descriptions(usage, &mut lengths).ok()?;
    }
    let keep = longest_that_saves(&lengths, len - limit)?;
    let mut clipped = Vec::with_capacity(limit);
    for usage in usages {
        clip(usage, keep, &mut clipped).ok()?;
    }
    (clipped.len() <= limit).then_some(clipped)
}

/// Appends the length of each description in `usage`.
fn descriptions(usage: &[u8], lengths: &mut Vec<usize>) -> Result<(), Malformed> {
    for field in Fields::new(usage) {
        let (RECORD, Value::Bytes(record)) = field? else { continue };
        for field in Fields::new(record) {
            if let (DESCRIPTION, Value::Bytes(description)) = field? {
                lengths.push(description.len());
            }
        }
    }
    Ok(())
}

/// The most bytes that each description may keep so that `wanted` bytes are saved.
fn longest_that_saves(lengths: &[usize], wanted: usize) -> Option<usize> {
    let saved = |keep: usize| -> usize {
        lengths.iter().map(|len| len.saturating_sub(keep + MARK.len())).sum()
    };
    if saved(0) < wanted {
        return None;
    }
    let (mut enough, mut too_much) = (0, lengths.iter().copied().max()?);
    while enough + 1 < too_much {
        let middle = enough.midpoint(too_much);
        if saved(middle) >= wanted { enough = middle } else { too_much = middle }
    }
    Some(enough)
}

/// Appends `usage` with its descriptions cut.
fn clip(usage: &[u8], keep: usize, clipped: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut fields = Fields::new(usage);
    while let Some((field, raw)) = fields.next_with_bytes() {
        match field? {
            (RECORD, Value::Bytes(record)) => {
                let mut short = Vec::with_capacity(record.len());
                clip_record(record, keep, &mut short)?;
                put(RECORD, &[&short], clipped);
            }
            _ => clipped.extend_from_slice(raw),
        }
    }
    Ok(())
}

fn clip_record(record: &[u8], keep: usize, clipped: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut fields = Fields::new(record);
    while let Some((field, raw)) = fields.next_with_bytes() {
        match field? {
            (DESCRIPTION, Value::Bytes(text)) if text.len() > keep + MARK.len() => {
                // The cut must not fall inside a character, because a client accepts only valid UTF-8.
                let is_inside = |at: &usize| text[*at] & 0xc0 == 0x80;
                let end = (0..=keep).rev().find(|at| !is_inside(at)).unwrap_or_default();
                put(DESCRIPTION, &[&text[..end], MARK], clipped);
            }
            _ => clipped.extend_from_slice(raw),
        }
    }
    Ok(())
}

/// Appends a field whose value is the concatenation of `value`.
fn put(number: u32, value: &[&[u8]], to: &mut Vec<u8>) {
    use prost::encoding::{WireType, encode_key, encode_varint};
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(value.iter().map(|part| part.len() as u64).sum(), to);
    value.iter().for_each(|part| to.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::encoding::{WireType, encode_key, encode_varint};

    use super::*;

    /// A record with an id, a size, a description, and an unknown field.
    fn record(size: u64, description: &str) -> Vec<u8> {
        let mut record = Vec::new();
        put(1, &[b"id"], &mut record);
        encode_key(4, WireType::Varint, &mut record);
        encode_varint(size, &mut record);
        put(DESCRIPTION, &[description.as_bytes()], &mut record);
        put(77, &[b"new"], &mut record);
        record
    }

    fn usage(records: &[(u64, String)]) -> Bytes {
        let mut usage = Vec::new();
        for (size, description) in records {
            put(RECORD, &[&record(*size, description)], &mut usage);
        }
        usage.into()
    }

    /// The sizes and the descriptions, which must be text.
    fn read(usage: &[u8]) -> Vec<(u64, String)> {
        let records = Fields::new(usage).map(|field| match field.expect("valid") {
            (RECORD, Value::Bytes(record)) => record.to_vec(),
            field => panic!("{field:?}"),
        });
        let read = records.map(|record| {
            let (mut size, mut description) = (0, String::new());
            let mut new = false;
            for field in Fields::new(&record) {
                match field.expect("valid") {
                    (4, Value::Number(number)) => size = number,
                    (DESCRIPTION, Value::Bytes(text)) => {
                        description = String::from_utf8(text.to_vec()).expect("UTF-8");
                    }
                    (77, Value::Bytes(text)) => new = text == b"new",
                    _ => {}
                }
            }
            assert!(new, "what nobody knows stays");
            (size, description)
        });
        read.collect()
    }

    #[test]
    fn only_the_longest_are_cut_and_only_as_far_as_needed() {
        let records = [(1, "a".repeat(10_000)), (2, "short".to_owned()), (3, "b".repeat(400))];
        let whole = usage(&records);
        let limit = whole.len() - 5_000;
        let clipped = fitting(&[whole], limit).expect("fits");
        assert!(clipped.len() <= limit && clipped.len() > limit - 20, "{}", clipped.len());
        let read = read(&clipped);
        assert!(read[0].1.starts_with("aaaa") && read[0].1.ends_with(" … (cut)"));
        assert_eq!(read[1..], records[1..]);
    }

    #[test]
    fn what_cannot_be_made_to_fit_is_not() {
        let whole = usage(&[(1, "text".to_owned())]);
        assert_eq!(fitting(&[whole], 5), None);
        assert_eq!(fitting(&[Bytes::from_static(b"\xff")], 0), None);
    }

    proptest! {
        #[test]
        fn totals_stay_and_texts_stay_text(
            records in prop::collection::vec((any::<u64>(), "[aä€😀]{0,60}"), 1..40),
            less in 0_usize..2_000,
        ) {
            let halves = records.split_at(records.len() / 2);
            let usages = [usage(halves.0), usage(halves.1)];
            let len: usize = usages.iter().map(Bytes::len).sum();
            let limit = len.saturating_sub(less);
            if let Some(clipped) = fitting(&usages, limit) {
                prop_assert!(clipped.len() <= limit);
                for ((size, text), (old_size, old)) in read(&clipped).iter().zip(&records) {
                    prop_assert_eq!(size, old_size);
                    let kept = text.strip_suffix(" … (cut)");
                    prop_assert!(kept.map_or(text == old, |kept| old.starts_with(kept)));
                }
                prop_assert_eq!(read(&clipped).len(), records.len());
            }
        }

        #[test]
        fn any_bytes_are_clipped_or_refused(bytes: Vec<u8>, limit in 0_usize..100) {
            let _ = fitting(&[bytes.into()], limit);
        }
    }
}
