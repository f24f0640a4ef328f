//! One log record, within bounds: what clients and daemons send stands in some of its fields.

use std::borrow::Cow;

use serde_json::Value;

use super::LogFormat;

/// Longer records are shortened. A build's is below 1 KiB.
const MAX_LEN: usize = 8 << 10;

/// What a field of a record that is too long keeps at most; the second is for one of many long fields.
const FIELD_LENS: [usize; 2] = [1 << 10, 128];

/// `record`, shortened if it is too long; `None` if there is no way to.
pub(super) fn bounded(record: &[u8], format: LogFormat) -> Option<Cow<'_, [u8]>> {
    if record.len() <= MAX_LEN {
        return Some(Cow::Borrowed(record));
    }
    let shortened = match format {
        LogFormat::Text => format!("{}\n", cut(&String::from_utf8_lossy(record), MAX_LEN - 64)),
        LogFormat::Json => FIELD_LENS.iter().find_map(|len| {
            let mut value = serde_json::from_slice(record).ok()?;
            cut_fields(&mut value, *len);
            Some(format!("{value}\n")).filter(|text| text.len() <= MAX_LEN)
        })?,
    };
    Some(Cow::Owned(shortened.into_bytes()))
}

fn cut_fields(value: &mut Value, len: usize) {
    match value {
        Value::String(text) if text.len() > len => *text = cut(text, len),
        Value::Object(fields) => fields.values_mut().for_each(|value| cut_fields(value, len)),
        Value::Array(list) => list.iter_mut().for_each(|value| cut_fields(value, len)),
        _ => {}
    }
}

/// The beginning of `text`, and how much is missing.
fn cut(text: &str, len: usize) -> String {
    let end = (0..=len).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}… and {} bytes more", &text[..end], text.len() - end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_usual_length_stays_as_it_is() {
        assert!(matches!(bounded(b"{}\n", LogFormat::Json), Some(Cow::Borrowed(b"{}\n"))));
    }

    #[test]
    fn long_fields_are_cut_and_the_record_stays_readable() {
        let long = "ä\u{1}".repeat(100_000);
        for fields in [1, 20] {
            let values = (0..fields).map(|field| (format!("f{field}"), Value::from(long.clone())));
            let mut record = serde_json::json!({"level": "INFO", "fields": {"code": 7}});
            record["fields"].as_object_mut().expect("an object").extend(values);
            let record = format!("{record}\n");
            let short = bounded(record.as_bytes(), LogFormat::Json).expect("a record");
            assert!(short.len() <= MAX_LEN && short.ends_with(b"\n"));
            let short: Value = serde_json::from_slice(&short).expect("JSON");
            assert_eq!(short["fields"]["code"], 7);
            let field = short["fields"]["f0"].as_str().expect("a text");
            assert!(field.starts_with('ä') && field.contains("… and "), "{field}");
        }
        let short = bounded(long.as_bytes(), LogFormat::Text).expect("a record");
        assert!(short.len() <= MAX_LEN && short.ends_with(b" bytes more\n"));
        let broken = [b'{'; MAX_LEN + 1];
        assert_eq!(bounded(&broken, LogFormat::Json), None);
    }
}
