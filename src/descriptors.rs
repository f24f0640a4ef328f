//! The file descriptors of the process: how many there are for each purpose, and which errors mean that they ran out.

use std::io;

/// Kept back for the admin port, probes, discovery, files and spare connections: a sixteenth of all, but this at least.
const KEPT_BACK: u64 = 64;

/// The part of those that may be connections to daemons which no build uses: one in this many.
const SPARE_PART: u64 = 4;

/// The most such connections: more save nothing.
const MOST_SPARE: u64 = 256;

/// The most connections, even if the limit of descriptors is higher, because a connection takes memory, too.
const MOST: u64 = 1 << 18;

/// The number of descriptors for each purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Connections of clients.
    pub clients: u64,
    /// Connections to daemons that carry calls of clients.
    pub upstream: u64,
    /// Connections to daemons that are kept for the next build.
    pub spare: usize,
}

impl Budget {
    /// The budget for `limit` descriptors. Each build has a connection on either side.
    pub fn of(limit: u64) -> Self {
        let kept_back = (limit / 16).max(KEPT_BACK);
        let half = (limit.saturating_sub(kept_back) / 2).clamp(1, MOST);
        let spare = (kept_back / SPARE_PART).min(MOST_SPARE) as usize;
        Self { clients: half, upstream: half, spare }
    }

    /// The budget for the limit of this process at this time.
    pub fn of_process() -> Self {
        // A system without such a limit has enough descriptors.
        let limit = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self::of(limit)
    }
}

/// Whether `error` says that the process or the machine has run out of something: descriptors, memory
/// for sockets, or ports to connect from. The other side did not cause that.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_back_and_the_rest_is_for_both_sides() {
        let budget = |each, spare| Budget { clients: each, upstream: each, spare };
        assert_eq!(Budget::of(1_024), budget(480, 16));
        assert_eq!(Budget::of(65_536), budget(30_720, 256));
        assert_eq!(Budget::of(10), budget(1, 16));
        assert_eq!(Budget::of(u64::MAX), budget(MOST, 256));
    }

    #[test]
    fn a_refused_connection_is_no_shortage() {
        assert!(is_shortage(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_shortage(&io::Error::from_raw_os_error(libc::ECONNREFUSED)));
        assert!(!is_shortage(&io::ErrorKind::TimedOut.into()));
    }
}
