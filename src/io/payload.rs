//! Data on its way through the proxy, and how it gets from a body to the socket without a copy.
//!
//! An HTTP/2 library passes what is to be written as borrowed slices, which cannot be kept. So a [`Payload`] leaves
//! a shared handle of each slice that it shows, and the connection that is written to picks up the handle whose
//! memory contains the slice.

use std::{cell::RefCell, io::IoSlice};

use bytes::{Buf, Bytes};

/// The size in bytes below which a copy is cheaper than sharing.
const SHARE_LEN: usize = 2 * 1024;

thread_local! {
    /// Handles of the slices that payloads have shown since the last write.
    static SHOWN: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
}

/// A part of a body.
#[derive(Debug, Default)]
pub struct Payload(Bytes);

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl Buf for Payload {
    fn remaining(&self) -> usize {
        self.0.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.0
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match slices.first_mut() {
            Some(slice) if !self.0.is_empty() => {
                *slice = IoSlice::new(&self.0);
                if self.0.len() >= SHARE_LEN {
                    SHOWN.with_borrow_mut(|shown| shown.push(self.0.clone()));
                }
                1
            }
            _ => 0,
        }
    }

    fn advance(&mut self, len: usize) {
        self.0.advance(len);
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.0.copy_to_bytes(len)
    }
}

/// Takes the handles of all slices that were shown since the last call.
pub(super) fn take_shown() -> Vec<Bytes> {
    SHOWN.take()
}

/// The shared form of `slice`. `None` if it is small, or lies in none of `shown`.
pub(super) fn shared(shown: &[Bytes], slice: &[u8]) -> Option<Bytes> {
    let contains = |bytes: &&Bytes| {
        let outer = bytes.as_ptr_range();
        let inner = slice.as_ptr_range();
        outer.start <= inner.start && inner.end <= outer.end
    };
    if slice.len() < SHARE_LEN {
        return None;
    }
    shown.iter().find(contains).map(|bytes| bytes.slice_ref(slice))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(payload: &impl Buf) -> Vec<Bytes> {
        let mut slices = [IoSlice::new(&[])];
        payload.chunks_vectored(&mut slices);
        take_shown()
    }

    #[test]
    fn what_a_payload_shows_is_shared() {
        let payload = Payload::from(Bytes::from(vec![7; 3 * SHARE_LEN]));
        let shown = show(&payload);
        let slice = &payload.chunk()[1..=SHARE_LEN];
        let found = shared(&shown, slice).expect("it lies in the payload");
        assert_eq!((found.as_ptr(), found.len()), (slice.as_ptr(), SHARE_LEN));
        assert!(take_shown().is_empty(), "a handle is taken once");
    }

    #[test]
    fn other_memory_is_not() {
        let payload = Payload::from(Bytes::from(vec![7; 3 * SHARE_LEN]));
        let other = vec![7; SHARE_LEN];
        assert!(shared(&show(&payload), &other).is_none());
        assert!(shared(&[], &payload.chunk()[..SHARE_LEN]).is_none());
    }

    #[test]
    fn little_is_copied() {
        let payload = Payload::from(Bytes::from(vec![7; SHARE_LEN - 1]));
        assert!(show(&payload).is_empty());
    }
}
