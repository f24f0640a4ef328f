//! Walks over the fields of a protobuf message without decoding it.
//!
//! A decoder copies every field into a value of its own, so that a client chooses how much memory its message
//! takes: an empty map entry has two bytes on the wire and a hundred in memory. This walk allocates nothing: the
//! values are slices of the message.

/// How deep groups may nest. Protobuf deprecated groups in 2008, and no honest message nests them deeper.
const MAX_GROUP_DEPTH: usize = 32;

/// The bytes are no protobuf message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid protobuf message")]
pub struct Malformed;

/// The value of a field, as far as its wire type shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, a boolean or an enum.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
    /// A number of fixed width, or a group. The proxy reads neither.
    Other,
}

/// The fields of a message in their order. An error ends them.
///
/// A field may occur in a message more than once, and the reader must know what that means: of numbers and texts
/// the last counts, and messages are merged.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of `message`, which is without its gRPC prefix.
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field, and its bytes in the message.
    #[expect(clippy::type_complexity, reason = "an item of the iterator and its bytes")]
    pub fn next_with_bytes(&mut self) -> Option<(Result<(u32, Value<'a>), Malformed>, &'a [u8])> {
        let before = self.rest;
        let field = self.next()?;
        Some((field, &before[..before.len() - self.rest.len()]))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Reads seven bits of each byte, the lowest first. Of the tenth byte one bit counts.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for (index, byte) in self.rest.iter().enumerate().take(10) {
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return if index == 9 && *byte > 1 { Err(Malformed) } else { Ok(number) };
            }
        }
        Err(Malformed)
    }

    /// Reads the number and the wire type of a field.
    fn tag(&mut self) -> Result<(u32, u8), Malformed> {
        let tag = u32::try_from(self.varint()?).ok().ok_or(Malformed)?;
        match tag >> 3 {
            0 => Err(Malformed),
            number => Ok((number, (tag & 7) as u8)),
        }
    }

    fn value(&mut self, wire_type: u8) -> Result<Value<'a>, Malformed> {
        match wire_type {
            0 => self.varint().map(Value::Number),
            1 => self.take(8).map(|_fixed| Value::Other),
            2 => {
                let len = usize::try_from(self.varint()?).ok().ok_or(Malformed)?;
                self.take(len).map(Value::Bytes)
            }
            3 => self.skip_group(),
            5 => self.take(4).map(|_fixed| Value::Other),
            _ => Err(Malformed),
        }
    }

    fn skip_group(&mut self) -> Result<Value<'a>, Malformed> {
        let mut depth = 1;
        while depth > 0 {
            match self.tag()?.1 {
                3 if depth == MAX_GROUP_DEPTH => return Err(Malformed),
                3 => depth += 1,
                4 => depth -= 1,
                wire_type => {
                    self.value(wire_type)?;
                }
            }
        }
        Ok(Value::Other)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.tag().and_then(|(number, wire_type)| Ok((number, self.value(wire_type)?)));
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The last text of field `number`, as a decoder would have it. Empty if there is none.
///
/// # Errors
/// `message` is no protobuf message.
pub fn text(message: &[u8], number: u32) -> Result<&[u8], Malformed> {
    let mut found = &[][..];
    for field in Fields::new(message) {
        if let (at, Value::Bytes(text)) = field?
            && at == number
        {
            found = text;
        }
    }
    Ok(found)
}

/// The key and the value of one entry of a `map<string, …>`.
///
/// # Errors
/// `entry` is no protobuf message.
pub fn entry(entry: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (mut key, mut value) = (&[][..], &[][..]);
    for field in Fields::new(entry) {
        match field? {
            (1, Value::Bytes(text)) => key = text,
            (2, Value::Bytes(text)) => value = text,
            _ => {}
        }
    }
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::{Message as _, encoding};

    use super::*;
    use crate::wire::control::{Attr, BuildHistoryRequest};

    fn fields(message: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Malformed> {
        Fields::new(message).collect()
    }

    #[test]
    fn each_wire_type_is_walked_over() {
        let mut message = vec![0x08, 0x96, 0x01];
        message.extend([0x11, 1, 2, 3, 4, 5, 6, 7, 8]);
        message.extend([0x1a, 2, b'h', b'i']);
        message.extend([0x23, 0x2b, 0x30, 5, 0x2c, 0x24]);
        message.extend([0x35, 1, 2, 3, 4]);
        let expected = [
            (1, Value::Number(150)),
            (2, Value::Other),
            (3, Value::Bytes(b"hi")),
            (4, Value::Other),
            (6, Value::Other),
        ];
        assert_eq!(fields(&message), Ok(expected.to_vec()));
    }

    #[test]
    fn what_is_no_message_is_an_error_that_ends_it() {
        let deep = [0x0b; MAX_GROUP_DEPTH + 1];
        for message in [
            &[0x00, 0x00][..],
            &[0x08],
            &[0x0a, 0x02, 0x01],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[0x0c],
            &[0x0e],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
            &deep,
        ] {
            let mut walk = Fields::new(message);
            assert!(walk.any(|field| field.is_err()), "{message:?}");
            assert_eq!(walk.next(), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_walked_to_an_end(message: Vec<u8>) {
            let fields = Fields::new(&message).count();
            prop_assert!(fields <= message.len());
        }

        #[test]
        fn a_number_is_what_a_decoder_reads(number: u64) {
            let mut message = Vec::new();
            encoding::uint64::encode(7, &number, &mut message);
            prop_assert_eq!(fields(&message), Ok(vec![(7, Value::Number(number))]));
        }

        #[test]
        fn texts_are_what_a_decoder_reads(key: Vec<u8>, value: Vec<u8>, last: Vec<u8>) {
            let attr = Attr { key: key.clone().into(), value: value.clone().into() };
            let message = attr.encode_to_vec();
            prop_assert_eq!(entry(&message), Ok((&key[..], &value[..])));
            let once = BuildHistoryRequest { r#ref: value.into(), ..Default::default() };
            let again = BuildHistoryRequest { r#ref: last.into(), ..Default::default() };
            let message = [once.encode_to_vec(), again.encode_to_vec()].concat();
            let decoded = BuildHistoryRequest::decode(&message[..]).expect("valid");
            prop_assert_eq!(text(&message, 2), Ok(&decoded.r#ref[..]));
        }
    }
}
