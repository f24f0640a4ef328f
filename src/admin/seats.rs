//! Who is connected to the admin port: a bounded number in all, and a share of it for each address.
//!
//! A newcomer always finds a seat while anybody idles: the oldest idle connection of its own address goes first, and
//! when the port as a whole is full, the oldest of the address that has most. What waits for an answer that it may
//! wait for is not idle, and only who may change things can wait.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{metrics::AdminClosure, shares::network};

/// Connections of one port at once: a scrape of a thousand backends is half a megabyte, so that all of them hold less
/// than one build's context does.
const MAX: usize = 256;

/// Connections of one address at once: probes and a Prometheus need one or two, and all daemons of a machine that
/// is about to stop one each.
const SHARE: usize = 32;

/// How long an answer may take to be read, or a connection rest between two requests of a scraper's.
const STAY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Taken {
    id: u64,
    address: Option<IpAddr>,
    /// When it came or asked last.
    asked: Instant,
    /// Requests of it that may wait.
    waits: usize,
    leave: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    taken: Vec<Taken>,
}

impl State {
    fn of(&self, address: Option<IpAddr>) -> usize {
        self.taken.iter().filter(|seat| seat.address == address).count()
    }

    /// Sends away the oldest idle connection of `address`; whether there was one.
    fn vacate(&mut self, address: Option<IpAddr>) -> bool {
        let idle = self.taken.iter().enumerate();
        let idle = idle.filter(|(_at, seat)| seat.address == address && seat.waits == 0);
        let Some((at, _oldest)) = idle.min_by_key(|(_at, seat)| (seat.asked, seat.id)) else {
            return false;
        };
        self.taken.swap_remove(at).leave.cancel();
        true
    }

    /// The addresses from the one with most connections down.
    fn greediest(&self) -> Vec<Option<IpAddr>> {
        let mut addresses: Vec<_> = self.taken.iter().map(|seat| seat.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.sort_by_key(|address| std::cmp::Reverse(self.of(*address)));
        addresses
    }
}

/// The seats of one port.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<State>);

impl Seats {
    /// A seat for a connection from `ip`, or from this machine; none if all others wait for answers that they may
    /// wait for. Whom it was taken from is told by the reason.
    pub(super) fn take(
        self: &Arc<Self>,
        ip: Option<IpAddr>,
        now: Instant,
    ) -> (Option<Seat>, Option<AdminClosure>) {
        let mut state = self.0.lock();
        let address = network(ip);
        let mut closed = None;
        if address.is_some() && state.of(address) >= SHARE {
            closed = Some(AdminClosure::Share);
            if !state.vacate(address) {
                return (None, closed);
            }
        }
        if state.taken.len() >= MAX {
            closed = Some(AdminClosure::Full);
            if !state.greediest().into_iter().any(|address| state.vacate(address)) {
                return (None, closed);
            }
        }
        let (id, leave) = (state.next, CancellationToken::new());
        state.next += 1;
        state.taken.push(Taken { id, address, asked: now, waits: 0, leave: leave.clone() });
        (Some(Seat { id, seats: Arc::clone(self), leave }), closed)
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Taken)) {
        if let Some(seat) = self.0.lock().taken.iter_mut().find(|seat| seat.id == id) {
            change(seat);
        }
    }
}

/// One connection's seat.
#[derive(Debug)]
pub(super) struct Seat {
    id: u64,
    seats: Arc<Seats>,
    leave: CancellationToken,
}

impl Seat {
    /// A request has come.
    pub(super) fn asked(&self, now: Instant) {
        self.seats.change(self.id, |seat| seat.asked = now);
    }

    /// A request of it may wait, for as long as the guard lives.
    pub(super) fn wait(self: &Arc<Self>) -> Waits {
        self.seats.change(self.id, |seat| seat.waits += 1);
        Waits(Arc::clone(self))
    }

    /// When it has to go: its seat is another's, or it stays too long over an answer.
    pub(super) async fn over(&self) -> Option<AdminClosure> {
        tokio::select! {
            () = self.leave.cancelled() => None,
            () = self.overstayed() => Some(AdminClosure::Slow),
        }
    }

    async fn overstayed(&self) {
        loop {
            let mut due = Instant::now() + STAY;
            self.seats.change(self.id, |seat| {
                if seat.waits == 0 {
                    due = seat.asked + STAY;
                }
            });
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.0.lock().taken.retain(|seat| seat.id != self.id);
    }
}

/// A request that waits for an answer it may wait for.
#[derive(Debug)]
pub(super) struct Waits(Arc<Seat>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.seats.change(self.0.id, |seat| {
            seat.waits -= 1;
            // What it waited for is its answer now, and to be read in time.
            seat.asked = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    fn at(second: u64, start: Instant) -> Instant {
        start + Duration::from_secs(second)
    }

    #[test]
    fn the_oldest_idle_connection_of_an_address_makes_place_for_its_next() {
        let (seats, start) = (Arc::new(Seats::default()), Instant::now());
        let (bystander, _) = seats.take(ip("10.0.0.2"), start);
        let taken: Vec<_> = (0..SHARE as u64)
            .map(|n| seats.take(ip("10.0.0.1"), at(n, start)).0.expect("a seat"))
            .collect();
        taken[0].asked(at(100, start));
        let taken: Vec<_> = taken.into_iter().map(Arc::new).collect();
        let _wait = taken[1].wait();
        // By the other spelling of the same address.
        let (next, closed) = seats.take(ip("::ffff:10.0.0.1"), at(101, start));
        assert_eq!((next.is_some(), closed), (true, Some(AdminClosure::Share)));
        let gone = |seat: &Seat| seat.leave.is_cancelled();
        let who: Vec<_> = (0..SHARE).filter(|n| gone(&taken[*n])).collect();
        assert_eq!(who, [2], "the first has asked since, the second waits for an answer");
        assert!(!gone(&bystander.expect("a seat")));
    }

    #[test]
    fn a_full_port_takes_from_the_address_that_has_most() {
        let (seats, now) = (Arc::new(Seats::default()), Instant::now());
        let mut taken = Vec::new();
        for n in 0..MAX {
            let address = if n < 10 { "10.9.9.9".to_owned() } else { format!("10.0.{n}.1") };
            taken.extend(seats.take(ip(&address), now).0);
        }
        let (next, closed) = seats.take(ip("10.1.1.1"), now);
        assert_eq!((next.is_some(), closed), (true, Some(AdminClosure::Full)));
        assert_eq!(seats.0.lock().of(ip("10.9.9.9")), 9);
    }

    #[test]
    fn nobody_is_sent_away_who_waits_for_an_answer() {
        let (seats, now) = (Arc::new(Seats::default()), Instant::now());
        let take = || seats.take(ip("10.0.0.1"), now).0.map(Arc::new);
        let taken: Vec<_> = (0..SHARE).map(|_| take().expect("a seat")).collect();
        let waits: Vec<_> = taken.iter().map(Seat::wait).collect();
        assert!(take().is_none());
        drop(waits);
        assert!(take().is_some());
        assert!(seats.take(ip("10.0.0.2"), now).0.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_reads_ends_the_connection() {
        let (seats, now) = (Arc::new(Seats::default()), Instant::now());
        let old = now.checked_sub(STAY).expect("the machine is up");
        let seat = Arc::new(seats.take(None, old).0.expect("a seat"));
        let wait = seat.wait();
        let waits = tokio::time::timeout(STAY / 2, seat.over()).await;
        assert!(waits.is_err(), "it waits for an answer that it may wait for");
        drop(wait);
        seat.asked(old);
        assert_eq!(seat.over().await, Some(AdminClosure::Slow));
    }

    proptest! {
        #[test]
        fn no_sequence_of_clients_takes_more_than_its_share(
            steps in proptest::collection::vec((0_u8..40, 0_u8..4, any::<bool>()), 0..600),
        ) {
            let (seats, start) = (Arc::new(Seats::default()), Instant::now());
            let mut open = Vec::new();
            for (at, (client, action, wait)) in steps.into_iter().enumerate() {
                let address = ip(&format!("10.0.0.{client}"));
                match action {
                    0 if !open.is_empty() => drop(open.swap_remove(at % open.len())),
                    _ => {
                        let now = start + Duration::from_millis(at as u64);
                        let Some(seat) = seats.take(address, now).0.map(Arc::new) else { continue };
                        let waits = wait.then(|| seat.wait());
                        open.push((seat, waits));
                    }
                }
                let state = seats.0.lock();
                prop_assert!(state.taken.len() <= MAX);
                prop_assert!(state.of(address) <= SHARE);
            }
        }
    }
}
