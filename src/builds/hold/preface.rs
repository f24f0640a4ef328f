//! What the proxy sends and receives inside a held Session before its daemon is known.
//!
//! Inside a Session runs an HTTP/2 connection whose client is the daemon. The inner server of the Session's client
//! closes the connection if no preface comes within 10 s, and no SETTINGS 2 s later. The proxy therefore begins the
//! connection in the daemon's place. Later it removes from both directions what the other side would get twice.

use bytes::{Bytes, BytesMut};

use crate::wire::{self, MessageDecoder, WireError, control::BytesMessage};

/// The first bytes of an HTTP/2 client (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A SETTINGS frame without settings. The daemon's own SETTINGS come later and are still valid then.
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];

/// Bytes of a frame's header: length, type, flags and stream.
const FRAME_HEADER_LEN: usize = 9;

/// The frame type of SETTINGS.
const SETTINGS: u8 = 4;

/// The flag of a SETTINGS frame that acknowledges the other side's SETTINGS.
const ACK: u8 = 1;

/// The most bytes that a daemon's message may have until its preface has been removed. grpc-go sends the preface alone,
/// in 24 bytes.
const MAX_FIRST_LEN: usize = 64 << 10;

/// The first message of a held Session.
///
/// It does not acknowledge the client's SETTINGS. The daemon does that, and a second acknowledgement would be an error.
pub(super) fn opening() -> Bytes {
    let data = [PREFACE, EMPTY_SETTINGS].concat().into();
    wire::encode(&BytesMessage { data })
}

/// What the client has sent so far, without its acknowledgement of the proxy's SETTINGS. The daemon has sent no
/// SETTINGS that the acknowledgement could belong to.
///
/// Bytes that cannot be read stay as they are. So does an acknowledgement that has not arrived completely: a daemon
/// tolerates one too many.
pub(super) fn without_confirmation(received: &Bytes) -> Bytes {
    let mut messages = MessageDecoder::new(wire::MAX_MESSAGE_LEN);
    messages.push(received);
    let mut inner = BytesMut::new();
    while let Ok(Some(message)) = messages.next_message() {
        let Ok(message) = wire::decode::<BytesMessage>(&message) else { return received.clone() };
        inner.extend_from_slice(&message.data);
    }
    let Some(at) = confirmation(&inner) else { return received.clone() };
    let after = inner.split_off(at).split_off(FRAME_HEADER_LEN);
    inner.unsplit(after);
    let sent = match inner.is_empty() {
        true => Bytes::new(),
        false => wire::encode(&BytesMessage { data: inner.freeze() }),
    };
    [sent, messages.take_rest()].concat().into()
}

/// Where the first frame that acknowledges SETTINGS begins.
fn confirmation(inner: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let header: [u8; FRAME_HEADER_LEN] =
            inner.get(at..at + FRAME_HEADER_LEN)?.try_into().ok()?;
        let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if header[3] == SETTINGS && header[4] & ACK != 0 && len == 0 {
            return Some(at);
        }
        at += FRAME_HEADER_LEN + len;
    }
}

/// Why a daemon cannot continue a Session that the proxy began.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPreface {
    #[error("its session does not begin with an HTTP/2 preface")]
    Other,
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Removes the daemon's own preface from what the daemon sends first.
#[derive(Debug)]
pub(super) struct PrefaceStripper {
    messages: MessageDecoder,
    inner: BytesMut,
}

impl PrefaceStripper {
    /// A stripper that has received nothing yet.
    pub(super) fn new() -> Self {
        Self { messages: MessageDecoder::new(MAX_FIRST_LEN), inner: BytesMut::new() }
    }

    /// Takes the next bytes. Once the preface has been removed, returns the bytes that followed it. All bytes after
    /// that pass unchanged.
    ///
    /// # Errors
    /// The daemon does not begin with a preface.
    pub(super) fn push(&mut self, data: &[u8]) -> Result<Option<Bytes>, NoPreface> {
        self.messages.push(data);
        while self.inner.len() < PREFACE.len() {
            let Some(message) = self.messages.next_message()? else { return Ok(None) };
            self.inner.extend_from_slice(&wire::decode::<BytesMessage>(&message)?.data);
        }
        let rest = self.inner.split_off(PREFACE.len());
        if self.inner != PREFACE {
            return Err(NoPreface::Other);
        }
        let first = match rest.is_empty() {
            true => Bytes::new(),
            false => wire::encode(&BytesMessage { data: rest.freeze() }),
        };
        Ok(Some([first, self.messages.take_rest()].concat().into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a client of BuildKit sends before it receives anything, and its acknowledgement.
    const SETTINGS_OF_CLIENT: &[u8] = &[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 250];
    const WINDOW_UPDATE: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 15, 0, 1];
    const CONFIRMATION: &[u8] = &[0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];

    /// `inner` in messages of `size` bytes each.
    fn framed(inner: &[u8], size: usize) -> Bytes {
        let message =
            |data: &[u8]| wire::encode(&BytesMessage { data: Bytes::copy_from_slice(data) });
        inner.chunks(size).map(message).collect::<Vec<_>>().concat().into()
    }

    /// The bytes inside whole messages.
    fn inner(framed: &[u8]) -> Vec<u8> {
        let mut messages = MessageDecoder::new(wire::MAX_MESSAGE_LEN);
        messages.push(framed);
        let mut all = Vec::new();
        while let Some(message) = messages.next_message().expect("valid") {
            all.extend_from_slice(&wire::decode::<BytesMessage>(&message).expect("valid").data);
        }
        all
    }

    #[test]
    fn the_opening_has_33_bytes_of_http2() {
        let opening = inner(&opening());
        assert_eq!(opening.len(), 33);
        assert!(opening.starts_with(PREFACE));
    }

    proptest! {
        #[test]
        fn one_confirmation_goes_and_everything_else_stays_in_order(
            size in 1_usize..80,
            more in prop::collection::vec(any::<u8>(), 0..50),
            torn in 0_usize..5,
        ) {
            let before = [SETTINGS_OF_CLIENT, WINDOW_UPDATE].concat();
            let sent = [&before[..], CONFIRMATION, &more].concat();
            let tail = [0, 0, 0, 1, 0];
            let received = [&framed(&sent, size)[..], &tail[..torn]].concat().into();
            let kept = without_confirmation(&received);
            prop_assert!(kept.ends_with(&tail[..torn]));
            prop_assert_eq!(inner(&kept[..kept.len() - torn]), [before, more].concat());
        }

        #[test]
        fn whatever_else_a_client_sends_stays(received: Vec<u8>) {
            let received = Bytes::from(received);
            prop_assert_eq!(without_confirmation(&received), received);
        }

        #[test]
        fn the_preface_goes_and_everything_else_stays_in_order(
            size in 1_usize..80,
            piece in 1_usize..40,
            more in prop::collection::vec(any::<u8>(), 0..90),
        ) {
            let sent = framed(&[PREFACE, &more].concat(), size);
            let mut stripper = PrefaceStripper::new();
            let mut passed = Vec::new();
            let mut pieces = sent.chunks(piece);
            for data in pieces.by_ref() {
                if let Some(rest) = stripper.push(data).expect("a preface") {
                    passed.extend_from_slice(&rest);
                    break;
                }
            }
            pieces.for_each(|data| passed.extend_from_slice(data));
            prop_assert_eq!(inner(&passed), more);
        }

        #[test]
        fn a_daemon_that_begins_otherwise_is_found_out(data in prop::collection::vec(any::<u8>(), 24..60)) {
            prop_assume!(!data.starts_with(PREFACE));
            prop_assert!(PrefaceStripper::new().push(&framed(&data, 7)).is_err());
        }

        #[test]
        fn any_bytes_of_a_daemon_are_read_or_refused(data: Vec<u8>) {
            let _ = PrefaceStripper::new().push(&data);
        }
    }
}
