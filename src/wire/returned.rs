//! Checks that a ReturnRequest contains what a daemon relies on.
//!
//! buildkitd (v0.32.2, frontend/gateway) expects a result if there is no error, and a value for each entry of its
//! maps. If one is missing, the daemon crashes, and every build on it fails. The field numbers are those of
//! frontend/gateway/pb/gateway.proto.

use super::fields::{Fields, Malformed, Value};

/// Whether a daemon can handle `request`.
///
/// # Errors
/// `request` is no protobuf message, or a daemon may decode it differently than this function.
pub fn is_complete(request: &[u8]) -> Result<bool, Malformed> {
    let (mut result, mut error, mut valued) = (false, false, true);
    for field in Fields::new(request) {
        match field? {
            (1, Value::Bytes(inner)) => {
                result = true;
                valued &= has_values(inner)?;
            }
            (2, Value::Bytes(_)) => error = true,
            _ => {}
        }
    }
    // If there is an error, the daemon does not look at the result.
    Ok(error || result && valued)
}

/// Whether `request` says that the client has failed.
///
/// # Errors
/// `request` is no protobuf message.
pub fn is_error(request: &[u8]) -> Result<bool, Malformed> {
    let mut fields = Fields::new(request);
    fields.try_fold(false, |error, field| Ok(error | matches!(field?, (2, Value::Bytes(_)))))
}

/// Whether each entry of the maps `refs` and `attestations` of a Result has a value.
fn has_values(result: &[u8]) -> Result<bool, Malformed> {
    for field in Fields::new(result) {
        let complete = match field? {
            (4, Value::Bytes(refs)) => {
                let mut entries = Fields::new(refs);
                entries.try_fold(true, |complete, field| match field? {
                    (1, Value::Bytes(entry)) => Ok(complete & has_value(entry)?),
                    _ => Ok(complete),
                })?
            }
            (12, Value::Bytes(entry)) => has_value(entry)?,
            _ => true,
        };
        if !complete {
            return Ok(false);
        }
    }
    Ok(true)
}

fn has_value(entry: &[u8]) -> Result<bool, Malformed> {
    let mut value = false;
    for field in Fields::new(entry) {
        match field? {
            (2, Value::Bytes(_)) => value = true,
            // Here the daemon's decoder ignores the wire type, and would read something else.
            (1 | 2, Value::Number(_) | Value::Other) => return Err(Malformed),
            _ => {}
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `parts` as field `number` of a message.
    fn within(number: u8, parts: &[&[u8]]) -> Vec<u8> {
        let inner = parts.concat();
        [&[number << 3 | 2, u8::try_from(inner.len()).expect("short")], &inner[..]].concat()
    }

    #[test]
    fn what_clients_send_is_complete() {
        let reference = within(2, &[&within(1, &[b"id"])]);
        let refs = within(4, &[&within(1, &[&within(1, &[b"linux/amd64"]), &reference])]);
        let empty_ref = within(4, &[&within(1, &[&within(1, &[b"linux/amd64"]), &within(2, &[])])]);
        let attestations = within(12, &[&within(1, &[b"linux/amd64"]), &within(2, &[])]);
        for request in [
            within(1, &[]),
            within(1, &[&within(1, &[b"an old ref"])]),
            within(1, &[&within(2, &[&within(1, &[&within(1, &[b"key"])])])]),
            within(1, &[&within(3, &[&within(1, &[b"id"])])]),
            within(1, &[&refs]),
            within(1, &[&empty_ref, &attestations]),
            within(2, &[]),
            [within(1, &[&within(4, &[&within(1, &[])])]), within(2, &[b"\x08\x01"])].concat(),
        ] {
            assert_eq!(is_complete(&request), Ok(true), "{request:?}");
        }
    }

    #[test]
    fn a_failure_is_known_by_its_error() {
        let both = [within(2, &[b"\x08\x01"]), within(1, &[])].concat();
        assert_eq!(
            [&within(1, &[]), &both].map(|request| is_error(request)),
            [Ok(false), Ok(true)]
        );
    }

    #[test]
    fn what_ends_a_daemon_is_not() {
        for request in [
            Vec::new(),
            within(3, &[]),
            within(1, &[&within(4, &[&within(1, &[])])]),
            within(1, &[&within(4, &[&within(1, &[&within(1, &[b"linux/amd64"])])])]),
            within(1, &[&within(12, &[&within(1, &[b"linux/amd64"])])]),
        ] {
            assert_eq!(is_complete(&request), Ok(false), "{request:?}");
        }
        // A daemon reads the first byte as a length, so it finds no value in the rest.
        let entry = [0x0d, 0x05, b'a', b'a', b'a', 0x12, 0x00];
        let request = within(1, &[&within(4, &[&within(1, &[&entry])])]);
        assert_eq!(is_complete(&request), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_or_refused(request: Vec<u8>) {
            let _ = is_complete(&request);
        }
    }
}
