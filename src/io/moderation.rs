//! When a thread waits a moment before it looks for more, so that bulk data comes in larger pieces.
//!
//! A sender's system call wakes the proxy for each 32 to 64 KiB, and a wake-up costs as much as half of
//! the copying. Network cards have the same problem and the same answer, interrupt moderation.
//!
//! Nobody pays for it with time: as long as calls begin or end on the thread, it looks at once; and a
//! transfer that was faster without waits is left alone for a while. gRPC lets its windows grow only
//! while answers are prompt, so a transfer begins without waits, too.

use std::{
    cell::RefCell,
    mem, thread,
    time::{Duration, Instant},
};

/// How long bulk data gathers.
const MOMENT: Duration = Duration::from_micros(250);

/// Bytes of one look, on average, above which they are bulk data. Window updates are looks, too.
const BULK_LEN: usize = 24 * 1024;

/// How many looks the average is of.
const LOOKS: usize = 32;

/// Looks at once after a call has begun or ended: the next part of whatever it belongs to is due.
const PROMPT_LOOKS: u8 = 16;

/// What the speed of a transfer is measured over; one that takes much longer has paused.
const SLICE: Duration = Duration::from_millis(50);

/// How long is waited before the speed without waits is measured again.
const WAITING_SLICES: u8 = 10;

/// How long is not waited after waits have made a transfer slower.
const RESTING_SLICES: u8 = 10;

/// Slower is what falls below this part of the speed without waits; other load makes for the rest.
const SLOWER: f64 = 0.75;

thread_local! {
    static TRAFFIC: RefCell<Traffic> = const { RefCell::new(Traffic::NONE) };
}

/// What a thread's connections receive, and whether it may wait for more.
#[derive(Debug)]
struct Traffic {
    /// Bytes since the last look.
    received: usize,
    /// Bytes a look.
    average: usize,
    /// Looks that must be at once.
    prompt: u8,
    phase: Phase,
    /// Bytes a second without waits.
    speed: f64,
    /// Since when the speed is measured, and the bytes since.
    slice: Option<(Instant, usize)>,
}

/// What a transfer is in, and for how many slices more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prompt(u8),
    Waiting(u8),
}

impl Traffic {
    const NONE: Self = Self {
        received: 0,
        average: 0,
        prompt: 0,
        phase: Phase::Prompt(1),
        speed: 0.0,
        slice: None,
    };

    /// Whether the look at `now` can wait; all that was received before has been dealt with.
    fn can_wait(&mut self, now: Instant) -> bool {
        let received = mem::take(&mut self.received);
        if received == 0 {
            return false;
        }
        self.average = self.average - self.average / LOOKS + received / LOOKS;
        if self.average < BULK_LEN {
            (self.phase, self.slice) = (Phase::Prompt(1), None);
            return false;
        }
        self.judge(received, now);
        if self.prompt > 0 {
            self.prompt -= 1;
            return false;
        }
        matches!(self.phase, Phase::Waiting(_))
    }

    /// Moves on to the next phase when it is time.
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
            Phase::Prompt(left @ 2..) => Phase::Prompt(left - 1),
            Phase::Prompt(_) => {
                self.speed = speed;
                Phase::Waiting(WAITING_SLICES)
            }
            Phase::Waiting(_) if speed < self.speed * SLOWER => Phase::Prompt(RESTING_SLICES),
            Phase::Waiting(left @ 2..) => Phase::Waiting(left - 1),
            Phase::Waiting(_) => Phase::Prompt(1),
        };
    }
}

/// Notes `len` bytes that came.
pub(crate) fn received(len: usize) {
    TRAFFIC.with_borrow_mut(|traffic| traffic.received += len);
}

/// Notes that a call begins, is answered or ends.
pub(super) fn call_moved() {
    TRAFFIC.with_borrow_mut(|traffic| traffic.prompt = PROMPT_LOOKS);
}

/// Lets bulk data gather. The runtime calls it each time a thread has nothing left to do.
pub fn before_look() {
    if TRAFFIC.with_borrow_mut(|traffic| traffic.can_wait(Instant::now())) {
        thread::sleep(MOMENT);
    }
}

/// Bytes that the thread has received since it last looked.
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

        /// Looks that wait of those in `millis` ms, one each ms; each brings `len` bytes, or `waited`
        /// bytes if it has waited.
        fn waits(&mut self, millis: usize, len: usize, waited: usize) -> usize {
            let mut waits = 0;
            let mut waiting = false;
            for _ in 0..millis {
                self.traffic.received += if waiting { waited } else { len };
                self.now += Duration::from_millis(1);
                waiting = self.traffic.can_wait(self.now);
                waits += usize::from(waiting);
            }
            waits
        }
    }

    #[test]
    fn bulk_data_gathers_after_a_while() {
        let mut thread = Thread::new();
        assert_eq!(thread.waits(40, MIB, MIB), 0);
        let waits = thread.waits(2000, MIB, MIB);
        assert!((1700..1900).contains(&waits), "{waits} of 2000, the rest measures");
    }

    #[test]
    fn a_transfer_that_waits_slow_down_is_left_alone() {
        let mut thread = Thread::new();
        let waits = thread.waits(5000, MIB, MIB / 2);
        assert!((1..600).contains(&waits), "{waits} of 5000, to try again");
    }

    #[test]
    fn little_data_never_waits_and_ends_the_waits() {
        let mut thread = Thread::new();
        assert_eq!(thread.waits(1000, 4096, 4096), 0);
        assert!(thread.waits(500, 100_000, 100_000) > 100);
        assert!(thread.waits(100, 100, 100) < 60);
        assert_eq!(thread.waits(100, 100, 100), 0);
    }

    #[test]
    fn calls_make_looks_prompt() {
        let mut thread = Thread::new();
        thread.waits(100, MIB, MIB);
        thread.traffic.prompt = PROMPT_LOOKS;
        assert_eq!(thread.waits(PROMPT_LOOKS.into(), MIB, MIB), 0);
        assert_eq!(thread.waits(1, MIB, MIB), 1);
    }

    #[test]
    fn a_pause_is_not_slowness() {
        let mut thread = Thread::new();
        assert!(thread.waits(100, MIB, MIB) > 0);
        thread.now += Duration::from_secs(60);
        assert_eq!(thread.waits(10, MIB, MIB), 10);
    }

    #[test]
    fn nothing_received_is_nothing_to_wait_for() {
        let mut thread = Thread::new();
        thread.waits(100, MIB, MIB);
        assert!(!thread.traffic.can_wait(thread.now));
    }
}
