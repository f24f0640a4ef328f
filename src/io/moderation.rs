//! Interrupt moderation: a thread that moves only bulk data delays its poll, so that data comes in larger pieces.
//!
//! Each system call of a sender wakes the proxy for 32 to 64 KiB, and a wake-up costs as much as half of the
//! copying. Network cards have the same problem, and solve it the same way.
//!
//! No call becomes slower: while calls begin or end on the thread, it polls immediately. If delays slow a transfer
//! down, the thread stops delaying for a while. A transfer begins without delays, because gRPC lets its windows grow
//! only while answers come fast.

use std::{
    cell::RefCell,
    mem, thread,
    time::{Duration, Instant},
};

/// How long a poll is delayed, so that bulk data gathers.
const DELAY: Duration = Duration::from_micros(250);

/// Data is bulk data if a poll finds more bytes than this on average. Polls that find window updates count, too.
const BULK_LEN: usize = 24 * 1024;

/// The number of polls in the average.
const POLLS: usize = 32;

/// Polls without delay after a call has begun or ended: the next call of the same build is due.
const IMMEDIATE_POLLS: u8 = 16;

/// The time over which the speed of a transfer is measured. If a slice takes much longer, the transfer has paused.
const SLICE: Duration = Duration::from_millis(50);

/// Slices with delays, before the speed without delays is measured again.
const DELAYED_SLICES: u8 = 10;

/// Slices without delays after delays have slowed a transfer down.
const RESTING_SLICES: u8 = 10;

/// Delays have slowed a transfer down if its speed falls below this part of the speed without delays. Smaller
/// differences come from other load.
const SLOWER: f64 = 0.75;

thread_local! {
    static TRAFFIC: RefCell<Traffic> = const { RefCell::new(Traffic::NONE) };
}

/// What the connections of a thread receive, and whether the thread may delay its next poll.
#[derive(Debug)]
struct Traffic {
    /// Bytes received since the last poll.
    received: usize,
    /// Average bytes per poll.
    average: usize,
    /// Polls that must not be delayed.
    immediate: u8,
    phase: Phase,
    /// Bytes per second without delays.
    speed: f64,
    /// When the current slice began, and the bytes received since.
    slice: Option<(Instant, usize)>,
}

/// Whether polls are delayed, and for how many more slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Immediate(u8),
    Delayed(u8),
}

impl Traffic {
    const NONE: Self = Self {
        received: 0,
        average: 0,
        immediate: 0,
        phase: Phase::Immediate(1),
        speed: 0.0,
        slice: None,
    };

    /// Whether the poll at `now` may be delayed. All bytes received before have been handled.
    fn may_delay(&mut self, now: Instant) -> bool {
        let received = mem::take(&mut self.received);
        if received == 0 {
            return false;
        }
        self.average = self.average - self.average / POLLS + received / POLLS;
        if self.average < BULK_LEN {
            (self.phase, self.slice) = (Phase::Immediate(1), None);
            return false;
        }
        self.judge(received, now);
        if self.immediate > 0 {
            self.immediate -= 1;
            return false;
        }
        matches!(self.phase, Phase::Delayed(_))
    }

    /// Measures the speed, and starts the next phase when the current one is over.
    fn judge(&mut self, received: usize, now: Instant) {
        let Some((began, bytes)) = &mut self.slice else {
            self.slice = Some((now, 0));
            return;
        };
        *bytes += received;
        let elapsed = now - *began;
        if elapsed < SLICE {
            return;
        }
        let speed = *bytes as f64 / elapsed.as_secs_f64();
        self.slice = Some((now, 0));
        if elapsed > 4 * SLICE {
            return;
        }
        self.phase = match self.phase {
            Phase::Immediate(left @ 2..) => Phase::Immediate(left - 1),
            Phase::Immediate(_) => {
                self.speed = speed;
                Phase::Delayed(DELAYED_SLICES)
            }
            Phase::Delayed(_) if speed < self.speed * SLOWER => Phase::Immediate(RESTING_SLICES),
            Phase::Delayed(left @ 2..) => Phase::Delayed(left - 1),
            Phase::Delayed(_) => Phase::Immediate(1),
        };
    }
}

/// Counts `len` received bytes.
pub(crate) fn received(len: usize) {
    TRAFFIC.with_borrow_mut(|traffic| traffic.received += len);
}

/// Notes that a call begins, gets its answer or ends.
pub(super) fn call_moved() {
    TRAFFIC.with_borrow_mut(|traffic| traffic.immediate = IMMEDIATE_POLLS);
}

/// Delays the poll if bulk data should gather. The runtime calls this each time a thread runs out of work.
pub fn before_poll() {
    if TRAFFIC.with_borrow_mut(|traffic| traffic.may_delay(Instant::now())) {
        thread::sleep(DELAY);
    }
}

/// Bytes that the thread has received since its last poll.
#[cfg(test)]
pub(crate) fn unseen() -> usize {
    TRAFFIC.with_borrow(|traffic| traffic.received)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// A thread and the time.
    struct Thread {
        traffic: Traffic,
        now: Instant,
    }

    impl Thread {
        fn new() -> Self {
            Self { traffic: Traffic::NONE, now: Instant::now() }
        }

        /// The number of delayed polls in `millis` ms, with one poll per ms. A poll finds `len` bytes, or `delayed_len`
        /// bytes if it was delayed.
        fn delays(&mut self, millis: usize, len: usize, delayed_len: usize) -> usize {
            let mut delays = 0;
            let mut delayed = false;
            for _ in 0..millis {
                self.traffic.received += if delayed { delayed_len } else { len };
                self.now += Duration::from_millis(1);
                delayed = self.traffic.may_delay(self.now);
                delays += usize::from(delayed);
            }
            delays
        }
    }

    #[test]
    fn bulk_data_gathers_after_a_while() {
        let mut thread = Thread::new();
        assert_eq!(thread.delays(40, MIB, MIB), 0);
        let delays = thread.delays(2000, MIB, MIB);
        assert!(
            (1700..1900).contains(&delays),
            "{delays} of 2000, the other polls measure the speed"
        );
    }

    #[test]
    fn a_transfer_that_delays_slow_down_is_left_alone() {
        let mut thread = Thread::new();
        let delays = thread.delays(5000, MIB, MIB / 2);
        assert!((1..600).contains(&delays), "{delays} of 5000, to measure again");
    }

    #[test]
    fn little_data_is_never_delayed_and_ends_the_delays() {
        let mut thread = Thread::new();
        assert_eq!(thread.delays(1000, 4096, 4096), 0);
        assert!(thread.delays(500, 100_000, 100_000) > 100);
        assert!(thread.delays(100, 100, 100) < 60);
        assert_eq!(thread.delays(100, 100, 100), 0);
    }

    #[test]
    fn calls_make_polls_immediate() {
        let mut thread = Thread::new();
        thread.delays(100, MIB, MIB);
        thread.traffic.immediate = IMMEDIATE_POLLS;
        assert_eq!(thread.delays(IMMEDIATE_POLLS.into(), MIB, MIB), 0);
        assert_eq!(thread.delays(1, MIB, MIB), 1);
    }

    #[test]
    fn a_pause_is_not_slowness() {
        let mut thread = Thread::new();
        assert!(thread.delays(100, MIB, MIB) > 0);
        thread.now += Duration::from_secs(60);
        assert_eq!(thread.delays(10, MIB, MIB), 10);
    }

    #[test]
    fn a_poll_is_not_delayed_if_nothing_was_received() {
        let mut thread = Thread::new();
        thread.delays(100, MIB, MIB);
        assert!(!thread.traffic.may_delay(thread.now));
    }
}
