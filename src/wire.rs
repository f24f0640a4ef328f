//! The bytes of gRPC that the proxy reads or writes: the framing, and the messages of `proto/`.
//!
//! This room owns the length-prefixed framing (gRPC over HTTP/2, "Length-Prefixed-Message") and its limits. It
//! knows nothing of streams or daemons.

pub mod fields;
pub mod history;
pub mod pong;
pub mod returned;
pub mod solve;

use std::io::Read as _;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;

/// The messages of `moby.buildkit.v1` that the proxy reads or writes.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod control {
    tonic::include_proto!("moby.buildkit.v1");
}

/// The messages of containerd's content service.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod content {
    tonic::include_proto!("containerd.services.content.v1");
}

/// KEDA's external scaler: its messages, a server, and a client for tests.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// The length of the prefix of a gRPC message: a flag byte and the length in 32 bits.
pub const PREFIX_LEN: usize = 5;

/// A framed message without fields.
pub const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; PREFIX_LEN]);

/// The largest message in bytes that BuildKit accepts on its control channel (grpc MaxRecvMsgSize).
pub const MAX_MESSAGE_LEN: usize = 16 << 20;

/// Why bytes are not the expected gRPC message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The length prefix announces more than the reader accepts.
    #[error("message of {len} bytes is above the limit of {limit}")]
    TooLarge {
        /// The announced length in bytes.
        len: usize,
        /// The largest length that the reader accepts.
        limit: usize,
    },
    /// The flag byte is neither 0 nor 1.
    #[error("unknown gRPC message flag {0:#04x}")]
    Flag(u8),
    /// The stream ended in the middle of a message.
    #[error("stream ended after {got} bytes of a message")]
    Truncated {
        /// The bytes received, including the prefix.
        got: usize,
    },
    /// The message is compressed in a way that the proxy cannot read.
    #[error("compressed message cannot be read")]
    Compressed(#[source] std::io::Error),
    /// The bytes are not the expected protobuf message.
    #[error("not a valid protobuf message")]
    Protobuf(#[from] prost::DecodeError),
    /// The bytes are not a protobuf message at all.
    #[error(transparent)]
    Malformed(#[from] fields::Malformed),
}

/// The length of the first message including its prefix. `None` if the prefix has not arrived yet.
///
/// # Errors
/// [`WireError::TooLarge`] if the prefix announces more than `limit` bytes, or the flag is unknown.
pub fn first_message_len(received: &[u8], limit: usize) -> Result<Option<usize>, WireError> {
    let Some(mut prefix) = received.get(..PREFIX_LEN) else {
        return Ok(None);
    };
    match prefix.get_u8() {
        0 | 1 => {}
        flag => return Err(WireError::Flag(flag)),
    }
    let len = prefix.get_u32() as usize;
    if len > limit {
        return Err(WireError::TooLarge { len, limit });
    }
    Ok(Some(PREFIX_LEN + len))
}

/// The payload of a framed message.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A payload that is not compressed.
    Plain(Bytes),
    /// A payload that is compressed with gzip, the only compression that grpc-go uses.
    Gzip(Bytes),
}

/// The payload of the first message in `framed`.
///
/// # Errors
/// The message is incomplete, or larger than a message may be.
pub fn payload(framed: &Bytes) -> Result<Payload, WireError> {
    let truncated = || WireError::Truncated { got: framed.len() };
    let end = first_message_len(framed, MAX_MESSAGE_LEN)?.ok_or_else(truncated)?;
    if framed.len() < end {
        return Err(truncated());
    }
    let payload = framed.slice(PREFIX_LEN..end);
    Ok(if framed[0] == 0 { Payload::Plain(payload) } else { Payload::Gzip(payload) })
}

/// Decompresses a [`Payload::Gzip`], up to the largest size of a message.
///
/// # Errors
/// The bytes are not gzip, or the result is too large.
pub fn unpack(packed: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(packed)
        .take(MAX_MESSAGE_LEN as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(WireError::Compressed)?;
    if plain.len() > MAX_MESSAGE_LEN {
        return Err(WireError::TooLarge { len: plain.len(), limit: MAX_MESSAGE_LEN });
    }
    Ok(plain)
}

/// Decodes one framed message of a daemon.
///
/// The fields of client messages are walked over instead ([`fields`]), because a decoded message could take a
/// hundred times the memory.
///
/// # Errors
/// Why the bytes are not a message of type `M`.
pub fn decode<M: Message + Default>(framed: &Bytes) -> Result<M, WireError> {
    Ok(match payload(framed)? {
        Payload::Plain(plain) => M::decode(plain)?,
        Payload::Gzip(packed) => M::decode(&unpack(&packed)?[..])?,
    })
}

/// Frames `message` as one uncompressed gRPC message.
pub fn encode<M: Message>(message: &M) -> Bytes {
    let len = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX_LEN + len);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    // A BytesMut grows as needed, so encoding into it cannot fail.
    let _ = message.encode(&mut framed);
    framed.freeze()
}

/// Frames a serialised `message` as one uncompressed gRPC message.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(PREFIX_LEN + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}

/// Splits a byte stream into its framed messages. The bytes of each message stay as they came.
#[derive(Debug)]
pub struct MessageDecoder {
    pending: BytesMut,
    limit: usize,
}

impl MessageDecoder {
    /// A decoder of messages with up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { pending: BytesMut::new(), limit }
    }

    /// Adds the bytes that arrived next.
    pub fn push(&mut self, data: &[u8]) {
        self.pending.extend_from_slice(data);
    }

    /// The length of the next message including its prefix. `None` if the prefix has not arrived yet.
    ///
    /// # Errors
    /// As for [`Self::next_message`].
    pub fn announced(&self) -> Result<Option<usize>, WireError> {
        first_message_len(&self.pending, self.limit)
    }

    /// The next whole message including its prefix. `None` if it has not arrived completely.
    ///
    /// # Errors
    /// The prefix of the next message is invalid, so the rest of the stream cannot be read.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, WireError> {
        match first_message_len(&self.pending, self.limit)? {
            Some(end) if self.pending.len() >= end => Ok(Some(self.pending.split_to(end).freeze())),
            _ => Ok(None),
        }
    }

    /// Takes the bytes that have arrived and belong to no whole message.
    pub fn take_rest(&mut self) -> Bytes {
        self.pending.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use control::{Attr, RefRequest, SolveRequest};

    fn gzipped(payload: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(payload).expect("writing to a Vec");
        let body = encoder.finish().expect("writing to a Vec");
        let mut framed = vec![1];
        framed.extend_from_slice(&u32::try_from(body.len()).expect("small").to_be_bytes());
        framed.extend_from_slice(&body);
        framed.into()
    }

    #[test]
    fn a_message_survives_framing() {
        let request = SolveRequest {
            r#ref: "build-1".into(),
            frontend_attrs: vec![Attr { key: "target".into(), value: vec![0xff, 0xfe].into() }],
            ..Default::default()
        };
        assert_eq!(decode::<SolveRequest>(&encode(&request)).expect("valid"), request);
    }

    #[test]
    fn a_gzip_message_is_read() {
        let payload = RefRequest { r#ref: "r".into() }.encode_to_vec();
        assert_eq!(decode::<RefRequest>(&gzipped(&payload)).expect("valid").r#ref, "r");
    }

    #[test]
    fn a_gzip_bomb_stops_at_the_message_limit() {
        let bomb = gzipped(&vec![0; MAX_MESSAGE_LEN * 4]);
        assert!(matches!(decode::<RefRequest>(&bomb), Err(WireError::TooLarge { .. })));
    }

    #[test]
    fn garbage_is_an_error_and_never_a_panic() {
        assert!(matches!(first_message_len(&[7, 0, 0, 0, 0], 9), Err(WireError::Flag(7))));
        assert!(matches!(first_message_len(&[0, 1, 0, 0, 0], 9), Err(WireError::TooLarge { .. })));
        assert!(matches!(
            decode::<RefRequest>(&Bytes::from_static(&[0, 0, 0, 0, 9, 1])),
            Err(WireError::Truncated { got: 6 })
        ));
        assert!(matches!(
            decode::<RefRequest>(&Bytes::from_static(&[1, 0, 0, 0, 1, 1])),
            Err(WireError::Compressed(_))
        ));
    }

    proptest! {
        /// Messages come out as they went in, however the stream is split. Random bytes end in a message or an
        /// error.
        #[test]
        fn messages_come_out_of_any_pieces_as_they_went_in(
            payloads in vec(vec(any::<u8>(), 0..80), 0..6),
            piece in 1..40_usize,
            garbage in vec(any::<u8>(), 0..80),
        ) {
            let framed = |payload: &Vec<u8>| {
                let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
                [&[0][..], &len, payload].concat()
            };
            let sent: Vec<_> = payloads.iter().map(framed).collect();
            let mut messages = MessageDecoder::new(100);
            let mut seen = Vec::new();
            for part in sent.concat().chunks(piece) {
                messages.push(part);
                while let Some(message) = messages.next_message().expect("valid") {
                    seen.push(message.to_vec());
                }
            }
            prop_assert_eq!(seen, sent);
            messages.push(&garbage);
            while let Ok(Some(_)) = messages.next_message() {}
        }
    }

    #[test]
    fn messages_are_found_wherever_the_stream_was_split() {
        let one = encode(&RefRequest { r#ref: "one".into() });
        let two = encode(&RefRequest { r#ref: "two".into() });
        let stream = [&one[..], &two[..]].concat();
        for split in 0..stream.len() {
            let mut messages = MessageDecoder::new(100);
            let mut seen = Vec::new();
            for part in [&stream[..split], &stream[split..]] {
                messages.push(part);
                while let Some(message) = messages.next_message().expect("valid") {
                    seen.push(message);
                }
            }
            assert_eq!(seen, [one.clone(), two.clone()]);
            assert!(messages.pending.is_empty());
        }
    }
}
