//! The bytes that a connection has received and the HTTP/2 library has not taken yet.
//!
//! DATA is passed on in frames that are as full as possible, whatever their size on the wire: gRPC sends a message
//! of 32 KiB as two frames of 16 KiB and one of 13 bytes, and each frame costs the library the same. The payload of
//! a frame is held back until the library has room for all of it, because otherwise the library would copy it once
//! more.

use std::{
    io,
    task::{Context, Poll, ready},
};

use tokio::io::ReadBuf;

use super::{Socket, buffers, moderation};
use crate::http2_limits::FRAME_LEN;

/// The largest payload of a frame, as the proxy announces it.
const FULL: usize = FRAME_LEN as usize;

/// The length of a frame's header (RFC 9113 section 4.1).
const HEAD_LEN: usize = 9;

/// The frame types DATA and HEADERS.
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// The only flag of a frame that may be joined with the one before it.
const END_STREAM: u8 = 1;

/// Received bytes. Holds no memory when there are none.
#[derive(Debug)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    /// The bytes that were not passed on yet: `buffer[taken..filled]`.
    taken: usize,
    filled: usize,
    /// The first bytes of a frame header whose rest has not arrived.
    partial: Head,
    partial_len: usize,
    /// The frame header that is being passed on, and how many bytes of it were.
    head: Head,
    head_given: usize,
    /// The number of bytes that are passed on unchanged: of the preface, or of the payload of a frame.
    plain: usize,
    /// DATA that is passed on in other frames than it arrived in.
    run: Run,
}

type Head = [u8; HEAD_LEN];

#[derive(Debug, Default)]
struct Run {
    stream: [u8; 4],
    /// The bytes left of the frame that is being passed on.
    out: usize,
    /// The bytes left of the frame that arrived. All of them are in the buffer.
    left: usize,
    /// Whether the frame that arrived ends the stream.
    end: bool,
}

impl Inbox {
    /// An empty inbox. The first `preface` bytes to arrive are no frames.
    pub(super) fn new(preface: usize) -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            filled: 0,
            partial: [0; HEAD_LEN],
            partial_len: 0,
            head: [0; HEAD_LEN],
            head_given: HEAD_LEN,
            plain: preface,
            run: Run::default(),
        }
    }

    /// Receives once, and returns the number of bytes. May be called only when [`Inbox::take`] has nothing more to
    /// pass on.
    pub(super) fn poll_fill(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        ready!(socket.poll_read_ready(cx))?;
        self.buffer = buffers::borrow();
        let start = self.partial_len;
        self.buffer[..start].copy_from_slice(&self.partial[..start]);
        let mut target = ReadBuf::new(&mut self.buffer[start..]);
        let result = socket.poll_read(cx, &mut target);
        let len = target.filled().len();
        if len == 0 {
            self.release();
        }
        ready!(result)?;
        if len > 0 {
            (self.taken, self.filled, self.partial_len) = (0, start + len, 0);
        }
        Poll::Ready(Ok(len))
    }

    /// The bytes that have arrived and were not passed on.
    pub(super) fn unread(&self) -> &[u8] {
        &self.buffer[self.taken..self.filled]
    }

    /// Passes on as much as fits and is useful now.
    pub(super) fn take(&mut self, into: &mut ReadBuf<'_>) {
        while self.give_some(into) {}
        if self.taken == self.filled {
            self.release();
        }
    }

    fn give_some(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let room = into.remaining();
        if room == 0 {
            return false;
        }
        if self.head_given < HEAD_LEN {
            let len = room.min(HEAD_LEN - self.head_given);
            into.put_slice(&self.head[self.head_given..self.head_given + len]);
            self.head_given += len;
            // The library makes room for the whole frame once it has seen the header.
            return self.plain.max(self.run.out) <= into.remaining();
        }
        if self.plain > 0 {
            let len = self.give(self.plain, into);
            self.plain -= len;
            return len > 0;
        }
        if self.run.out > 0 {
            if self.run.left == 0 {
                self.enter_next();
            }
            let len = self.give(self.run.left.min(self.run.out), into);
            self.run.left -= len;
            self.run.out -= len;
            return len > 0;
        }
        self.begin_frame()
    }

    fn give(&mut self, len: usize, into: &mut ReadBuf<'_>) -> usize {
        let len = len.min(self.filled - self.taken).min(into.remaining());
        into.put_slice(&self.buffer[self.taken..self.taken + len]);
        self.taken += len;
        len
    }

    /// Makes the header of the next frame to pass on, if one has arrived.
    fn begin_frame(&mut self) -> bool {
        if self.run.left == 0 {
            let Some(head) = self.head_at(self.taken) else {
                self.keep_partial();
                return false;
            };
            let whole = self.taken + HEAD_LEN + payload_len(&head) <= self.filled;
            if !(is_plain_data(&head) && whole) {
                if head[3] == HEADERS {
                    moderation::call_moved();
                }
                self.taken += HEAD_LEN;
                (self.head, self.head_given, self.plain) = (head, 0, payload_len(&head));
                return true;
            }
            self.enter_next();
        }
        let (len, end) = self.join();
        self.run.out = len;
        self.head[..3].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
        (self.head[3], self.head[4]) = (DATA, u8::from(end) * END_STREAM);
        self.head[5..].copy_from_slice(&self.run.stream);
        self.head_given = 0;
        true
    }

    /// The length of the frame that can be made of the rest of this frame and the following ones, and whether it
    /// ends the stream.
    fn join(&self) -> (usize, bool) {
        let Run { stream, left, end, .. } = self.run;
        let (mut len, mut end, mut position) = (left, end, self.taken + left);
        while !end
            && len < FULL
            && let Some(head) = self.head_at(position)
        {
            let next = payload_len(&head);
            position += HEAD_LEN + next;
            if !is_plain_data(&head) || head[5..] != stream || position > self.filled {
                break;
            }
            let taken = next.min(FULL - len);
            len += taken;
            end = taken == next && head[4] == END_STREAM;
        }
        (len, end)
    }

    /// Skips the header of a DATA frame that is completely in the buffer.
    fn enter_next(&mut self) {
        if let Some(head) = self.head_at(self.taken) {
            self.taken += HEAD_LEN;
            self.run.left = payload_len(&head);
            self.run.end = head[4] == END_STREAM;
            self.run.stream.copy_from_slice(&head[5..]);
        }
    }

    fn head_at(&self, position: usize) -> Option<Head> {
        self.buffer[..self.filled].get(position..)?.first_chunk().copied()
    }

    fn keep_partial(&mut self) {
        let len = self.filled - self.taken;
        if len == 0 {
            return;
        }
        self.partial[..len].copy_from_slice(&self.buffer[self.taken..self.filled]);
        self.partial_len = len;
        self.taken = self.filled;
    }

    fn release(&mut self) {
        buffers::give_back(std::mem::take(&mut self.buffer));
        (self.taken, self.filled) = (0, 0);
    }
}

fn payload_len(head: &Head) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

/// Whether a frame may be joined with others: it is DATA, not empty, has no padding and no unknown flag. Frames
/// that are too long are left to the library, which refuses them.
fn is_plain_data(head: &Head) -> bool {
    head[3] == DATA && head[4] & !END_STREAM == 0 && (1..=FULL).contains(&payload_len(head))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "no drain waits for a test")]
mod tests {
    use std::future::poll_fn;

    use proptest::prelude::*;
    use tokio::{io::AsyncWriteExt as _, net::UnixStream};

    use super::*;

    /// A frame: type, flags, stream, payload.
    type Frame = (u8, u8, u8, Vec<u8>);

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut wire = Vec::new();
        for (kind, flags, stream, payload) in frames {
            wire.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
            wire.extend_from_slice(&[*kind, *flags, 0, 0, 0, *stream]);
            wire.extend_from_slice(payload);
        }
        wire
    }

    fn decode(mut wire: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some((head, rest)) = wire.split_first_chunk::<HEAD_LEN>() {
            let (payload, rest) = rest.split_at(payload_len(head));
            frames.push((head[3], head[4], head[8], payload.to_vec()));
            wire = rest;
        }
        assert!(wire.is_empty(), "no frame is cut");
        frames
    }

    /// The same frames with adjacent DATA of one stream joined, so that frames which were cut differently compare
    /// equal.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut joined: Vec<Frame> = Vec::new();
        for frame in frames {
            match joined.last_mut() {
                Some(last)
                    if (last.0, last.1, last.2) == (DATA, 0, frame.2)
                        && frame.0 == DATA
                        && frame.1 & !END_STREAM == 0
                        && !frame.3.is_empty()
                        && !last.3.is_empty() =>
                {
                    last.1 = frame.1;
                    last.3.extend(frame.3);
                }
                _ => joined.push(frame),
            }
        }
        joined
    }

    /// Sends `wire` in pieces of `sent` bytes, and reads it with `room` bytes of room at a time.
    async fn pass(preface: usize, wire: Vec<u8>, sent: usize, room: usize) -> Vec<u8> {
        let (socket, mut other) = UnixStream::pair().expect("a pair");
        let mut socket = Socket::Unix(socket);
        let sender = tokio::spawn(async move {
            for piece in wire.chunks(sent) {
                other.write_all(piece).await.expect("sent");
                tokio::task::yield_now().await;
            }
        });
        let mut inbox = Inbox::new(preface);
        let mut received = Vec::new();
        let mut memory = vec![0; room];
        loop {
            let mut target = ReadBuf::new(&mut memory);
            inbox.take(&mut target);
            if !target.filled().is_empty() {
                received.extend_from_slice(target.filled());
            } else if poll_fn(|cx| inbox.poll_fill(&mut socket, cx)).await.expect("received") == 0 {
                break;
            }
        }
        assert_eq!(inbox.buffer.capacity(), 0, "an empty inbox holds no memory");
        sender.await.expect("no panic");
        received
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let kind = prop_oneof![6 => Just(DATA), 1 => 1..10_u8];
        let flags = prop_oneof![6 => Just(0), 1 => Just(END_STREAM), 1 => any::<u8>()];
        let len = prop_oneof![Just(0), 1..40_usize, Just(FULL), 1..FULL];
        (kind, flags, 1..3_u8, len, any::<u8>()).prop_map(|(kind, flags, stream, len, seed)| {
            let payload = (0..len).map(|index| (index * 7) as u8 ^ seed).collect();
            (kind, flags, stream, payload)
        })
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
    }

    proptest! {
        #[test]
        fn frames_keep_their_bytes_order_and_ends(
            frames in prop::collection::vec(frame(), 0..40),
            sent in prop_oneof![1..20_usize, 1..300_000_usize],
            room in prop_oneof![1..20_usize, 9..70_000_usize],
        ) {
            let wire = [&[b'p'; 24], &encode(&frames)[..]].concat();
            let passed = runtime().block_on(pass(24, wire, sent.max(100), room.max(50)));
            prop_assert_eq!(&passed[..24], &[b'p'; 24]);
            let passed = decode(&passed[24..]);
            prop_assert!(passed.iter().all(|frame| frame.3.len() <= FULL));
            prop_assert_eq!(joined(passed), joined(frames));
        }
    }

    #[test]
    fn small_frames_become_full_ones() {
        // The frames of grpc-go for three messages.
        let lens = [16 * 1024, 16 * 1024, 13].repeat(3);
        let frames: Vec<_> = lens.iter().map(|len| (DATA, 0, 1, vec![7; *len])).collect();
        let frames = encode(&frames);
        let passed = runtime().block_on(pass(0, frames, usize::MAX, FULL + HEAD_LEN));
        let lens: Vec<_> = decode(&passed).iter().map(|frame| frame.3.len()).collect();
        assert_eq!(lens, [FULL, 6 * 16 * 1024 + 39 - FULL]);
    }

    #[test]
    fn a_payload_waits_for_room() {
        let frames = encode(&[(DATA, 0, 1, vec![7; FULL])]);
        let mut inbox = Inbox::new(0);
        inbox.filled = frames.len();
        inbox.buffer = frames;
        let mut memory = [0; 1000];
        let mut target = ReadBuf::new(&mut memory);
        inbox.take(&mut target);
        assert_eq!(target.filled().len(), HEAD_LEN);
    }
}
