//! What goes over the wire, as far as the proxy reads it: gRPC framing and the messages of `proto/`.
//!
//! Owns the length-prefixed framing (gRPC over HTTP/2, "Length-Prefixed-Message") and its limits. It
//! knows nothing of streams or daemons.

pub mod fields;
pub mod history;
pub mod pong;
pub mod returned;
pub mod solve;

use std::io::Read as _;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;

/// Messages of `moby.buildkit.v1` that the proxy reads or writes.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod control {
    tonic::include_proto!("moby.buildkit.v1");
}

/// Messages of containerd's content service.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod content {
    tonic::include_proto!("containerd.services.content.v1");
}

/// KEDA's external scaler: the messages, the server, and a client for tests.
#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod externalscaler {
    tonic::include_proto!("externalscaler");
}

/// Flag byte and 32-bit length in front of every gRPC message.
pub const PREFIX_LEN: usize = 5;

/// A framed message without a field.
pub const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; PREFIX_LEN]);

/// The largest message BuildKit accepts on its control channel (grpc MaxRecvMsgSize, 16 MiB).
pub const MAX_MESSAGE_LEN: usize = 16 << 20;

/// Why bytes are not the gRPC message they should be.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The length prefix announces more than the reader accepts.
    #[error("message of {len} bytes is above the limit of {limit}")]
    TooLarge {
        /// Announced length.
        len: usize,
        /// What the reader accepts.
        limit: usize,
    },
    /// The flag byte is neither 0 nor 1.
    #[error("unknown gRPC message flag {0:#04x}")]
    Flag(u8),
    /// The stream ended inside a message.
    #[error("stream ended after {got} bytes of a message")]
    Truncated {
        /// Bytes received, prefix included.
        got: usize,
    },
    /// The message is compressed in a way the proxy cannot read.
    #[error("compressed message cannot be read")]
    Compressed(#[source] std::io::Error),
    /// The bytes are not the expected protobuf message.
    #[error("not a valid protobuf message")]
    Protobuf(#[from] prost::DecodeError),
    /// The bytes are not a protobuf message at all.
    #[error(transparent)]
    Malformed(#[from] fields::Malformed),
}

/// Length of the first message, prefix included, once its prefix is there.
///
/// # Errors
/// [`WireError::TooLarge`] as soon as the prefix announces more than `limit` bytes.
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

/// The bytes of a framed message.
#[derive(Debug, Clone)]
pub enum Payload {
    /// As they are.
    Plain(Bytes),
    /// Compressed with gzip, the only compression that grpc-go speaks.
    Gzip(Bytes),
}

/// Takes one message out of its frame.
///
/// # Errors
/// It is not whole, or larger than a message may be.
pub fn payload(framed: &Bytes) -> Result<Payload, WireError> {
    let truncated = || WireError::Truncated { got: framed.len() };
    let end = first_message_len(framed, MAX_MESSAGE_LEN)?.ok_or_else(truncated)?;
    if framed.len() < end {
        return Err(truncated());
    }
    let payload = framed.slice(PREFIX_LEN..end);
    Ok(if framed[0] == 0 { Payload::Plain(payload) } else { Payload::Gzip(payload) })
}

/// Unpacks a [`Payload::Gzip`], up to what a message may have.
///
/// # Errors
/// It is not gzip, or larger.
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
/// What a client sends is walked over instead ([`fields`]): decoded, it could take a hundred times the
/// memory.
///
/// # Errors
/// What the bytes lack to be a message of type `M`.
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

/// Splits a byte stream into its framed messages, and keeps the bytes of each message as they came.
#[derive(Debug)]
pub struct MessageDecoder {
    pending: BytesMut,
    limit: usize,
}

impl MessageDecoder {
    /// A decoder that accepts messages of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { pending: BytesMut::new(), limit }
    }

    /// Adds what was received next.
    pub fn push(&mut self, data: &[u8]) {
        self.pending.extend_from_slice(data);
    }

    /// The length of the next message, prefix included, once its prefix has come.
    ///
    /// # Errors
    /// As for [`Self::next_message`].
    pub fn announced(&self) -> Result<Option<usize>, WireError> {
        first_message_len(&self.pending, self.limit)
    }

    /// The next whole message, prefix included, or `None` until more has come.
    ///
    /// # Errors
    /// The prefix of the next message is not acceptable; the rest of the stream is then unreadable.
    pub fn next_message(&mut self) -> Result<Option<Bytes>, WireError> {
        match first_message_len(&self.pending, self.limit)? {
            Some(end) if self.pending.len() >= end => Ok(Some(self.pending.split_to(end).freeze())),
            _ => Ok(None),
        }
    }

    /// What has come and not been cut.
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
        /// Whatever the messages, and wherever the stream is split; and any bytes end in a message or an error.
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
