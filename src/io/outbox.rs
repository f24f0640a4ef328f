//! The bytes that were written to a connection and not sent yet.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    ops::Range,
    task::{Context, Poll, ready},
};

use bytes::Bytes;

use super::{Socket, payload};

/// The most bytes that are sent at once: sixteen full HTTP/2 frames of 16 KiB.
const BATCH_LEN: usize = 256 * 1024;

/// The most slices of one system call: more than a batch of full frames has.
const MAX_SLICES: usize = 64;

/// The number of gathered writes that a thread keeps for reuse. A build has two connections.
const POOLED: usize = 4;

/// The memory for copies that a gathered write may keep for reuse.
const KEPT_LEN: usize = BATCH_LEN;

thread_local! {
    #[allow(clippy::vec_box, reason = "an outbox has one box or none; to move it moves a pointer")]
    static POOL: RefCell<Vec<Box<Batch>>> = const { RefCell::new(Vec::new()) };
}

/// Gathers what is written. Holds no memory when there is nothing.
#[derive(Debug, Default)]
pub(super) struct Outbox(Option<Box<Batch>>);

#[derive(Debug, Default)]
struct Batch {
    pieces: Vec<Piece>,
    /// Copies of slices that are too small to share.
    copied: Vec<u8>,
    /// The bytes of all pieces that were not sent.
    len: usize,
    /// The bytes that the socket has accepted of the first piece that is not sent completely.
    sent: usize,
    /// The number of pieces that the socket has accepted completely.
    done: usize,
}

#[derive(Debug)]
enum Piece {
    /// A range of `copied`.
    Copied(Range<usize>),
    Shared(Bytes),
}

impl Outbox {
    /// Takes all of `slices`, or waits until earlier ones have been sent.
    pub(super) fn poll_write(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let shown = payload::take_shown();
        if self.0.as_ref().is_some_and(|batch| batch.len >= BATCH_LEN) {
            ready!(self.poll_write_out(socket, cx))?;
        }
        let batch =
            self.0.get_or_insert_with(|| POOL.with_borrow_mut(Vec::pop).unwrap_or_default());
        let before = batch.len;
        for slice in slices {
            batch.push(slice, &shown);
        }
        Poll::Ready(Ok(batch.len - before))
    }

    /// The number of bytes that wait to be sent.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |batch| batch.len)
    }

    /// Sends the written bytes, as far as the socket accepts them.
    pub(super) fn poll_write_out(
        &mut self,
        socket: &mut Socket,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(batch) = &mut self.0 else { return Poll::Ready(Ok(())) };
        while batch.done < batch.pieces.len() {
            let written = ready!(batch.poll_send(socket, cx))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            batch.advance(written);
        }
        ready!(socket.poll_flush(cx))?;
        if let Some(batch) = self.0.take() {
            batch.recycle();
        }
        Poll::Ready(Ok(()))
    }
}

impl Batch {
    fn push(&mut self, slice: &[u8], shown: &[Bytes]) {
        self.len += slice.len();
        if let Some(bytes) = payload::shared(shown, slice) {
            self.pieces.push(Piece::Shared(bytes));
            return;
        }
        #[cfg(test)]
        super::tests::count_copied(slice.len());
        let start = self.copied.len();
        self.copied.extend_from_slice(slice);
        let end = self.copied.len();
        match self.pieces.last_mut() {
            Some(Piece::Copied(range)) => range.end = end,
            _ if start == end => {}
            _ => self.pieces.push(Piece::Copied(start..end)),
        }
    }

    fn poll_send(&self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut skip = self.sent;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces[self.done..]) {
            *slice = IoSlice::new(&self.bytes(piece)[std::mem::take(&mut skip)..]);
            count += 1;
        }
        socket.poll_write(cx, &slices[..count])
    }

    fn bytes<'a>(&'a self, piece: &'a Piece) -> &'a [u8] {
        match piece {
            Piece::Copied(range) => &self.copied[range.clone()],
            Piece::Shared(bytes) => bytes,
        }
    }

    fn advance(&mut self, written: usize) {
        self.len -= written;
        self.sent += written;
        while let Some(piece) = self.pieces.get(self.done) {
            let len = self.bytes(piece).len();
            if self.sent < len {
                break;
            }
            self.sent -= len;
            self.done += 1;
        }
    }

    fn recycle(mut self: Box<Self>) {
        self.pieces.clear();
        self.copied.clear();
        self.copied.shrink_to(KEPT_LEN);
        (self.len, self.sent, self.done) = (0, 0, 0);
        POOL.with_borrow_mut(|pool| {
            if pool.len() < POOLED {
                pool.push(self);
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "no drain waits for a test")]
mod tests {
    use bytes::Buf as _;
    use tokio::{io::AsyncReadExt as _, net::UnixStream};

    use super::*;
    use crate::io::Payload;

    /// Heads and bodies of many sizes arrive unchanged.
    #[tokio::test]
    async fn everything_arrives_in_order() {
        let (socket, mut other) = UnixStream::pair().expect("a pair");
        let mut socket = Socket::Unix(socket);
        let mut expected = Vec::new();
        let bodies: Vec<_> = (0..200_usize)
            .map(|index| (0..index * 97).map(|byte| (byte * 31 + index) as u8).collect::<Vec<_>>())
            .collect();
        bodies.iter().for_each(|body| expected.extend([&b"head"[..], body].concat()));
        let len = expected.len();
        let reader = tokio::spawn(async move {
            let mut received = vec![0; len];
            other.read_exact(&mut received).await.expect("all of it");
            received
        });
        let mut outbox = Outbox::default();
        for body in bodies {
            let payload = Payload::from(Bytes::from(body));
            std::future::poll_fn(|cx| {
                let mut slices = [IoSlice::new(b"head"), IoSlice::new(&[])];
                let count = 1 + payload.chunks_vectored(&mut slices[1..]);
                outbox.poll_write(&mut socket, cx, &slices[..count])
            })
            .await
            .expect("written");
        }
        std::future::poll_fn(|cx| outbox.poll_write_out(&mut socket, cx)).await.expect("sent");
        assert!(outbox.0.is_none(), "an empty outbox holds no memory");
        assert_eq!(reader.await.expect("no panic"), expected);
    }
}
