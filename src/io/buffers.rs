//! Buffers for what is received. Each thread keeps a few for reuse, so that an idle connection holds none.

use std::cell::RefCell;

/// Read in one piece at most; small enough for the CPU cache.
pub(super) const BUFFER_LEN: usize = 256 * 1024;

/// Buffers each thread keeps for reuse: a build has two connections.
const POOLED: usize = 4;

thread_local! {
    /// Buffers of length [`BUFFER_LEN`].
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of length [`BUFFER_LEN`], with anything in it.
pub(super) fn borrow() -> Vec<u8> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_LEN])
}

/// Gives back what [`borrow`] gave; an empty one is ignored.
pub(super) fn give_back(buffer: Vec<u8>) {
    POOL.with_borrow_mut(|pool| {
        if buffer.capacity() > 0 && pool.len() < POOLED {
            pool.push(buffer);
        }
    });
}
