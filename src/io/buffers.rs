//! Buffers for received bytes. Each thread keeps some for reuse, so that an idle connection holds none.

use std::cell::RefCell;

/// The most bytes that are read at once: few enough for the CPU's cache.
pub(super) const BUFFER_LEN: usize = 256 * 1024;

/// The number of buffers that a thread keeps for reuse. A build has two connections.
const POOLED: usize = 4;

thread_local! {
    /// Buffers of length [`BUFFER_LEN`].
    static POOL: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of length [`BUFFER_LEN`] with arbitrary contents.
pub(super) fn borrow() -> Vec<u8> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_LEN])
}

/// Returns a buffer from [`borrow`] to the pool. One without memory is ignored.
pub(super) fn give_back(buffer: Vec<u8>) {
    POOL.with_borrow_mut(|pool| {
        if buffer.capacity() > 0 && pool.len() < POOLED {
            pool.push(buffer);
        }
    });
}
