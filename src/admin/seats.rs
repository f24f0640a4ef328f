//! The limit on connections of the admin port, which the addresses of clients share.
//!
//! A new connection finds a seat as long as another is idle. If its address has reached its share, the oldest idle
//! connection of that address is closed. If the whole port is full, the oldest idle connection of the address with the
//! most connections is closed. A connection is not idle while it waits for a drain, and only who may change things can
//! make one wait.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    connection_table::{ConnectionTable, Connections},
    metrics::AdminClosure,
    shares::network,
};

/// The most connections of the port. A scrape of a thousand backends has half a megabyte, so all of them together hold
/// less memory than the context of one build.
const MAX: usize = 256;

/// The most connections of one address. Probes and a Prometheus need one or two, and all daemons of a machine that
/// is about to stop need one each.
const SHARE: usize = 32;

/// How long an answer may take to be read, or a scraper may pause between two requests.
const STAY: Duration = Duration::from_secs(60);

/// A connection that has a seat.
#[derive(Debug)]
struct Taken {
    /// When the connection came, or sent its last request.
    asked: Instant,
    /// The requests of the connection that may wait.
    waits: usize,
    /// Cancelled when the seat is given to another connection.
    leave: CancellationToken,
}

#[derive(Debug)]
struct State {
    next: u64,
    taken: ConnectionTable<Taken>,
}

/// The seats of one port.
#[derive(Debug)]
pub(super) struct Seats(Mutex<State>);

impl Default for Seats {
    fn default() -> Self {
        Self(Mutex::new(State { next: 0, taken: ConnectionTable::new(longest_idle) }))
    }
}

impl Seats {
    /// Takes a seat for a connection from `ip`, or for one that came through a Unix socket or loopback.
    ///
    /// There is none if every connection that could be closed waits for a drain. The second value says whether a limit
    /// was reached, and which.
    pub(super) fn take(
        self: &Arc<Self>,
        ip: Option<IpAddr>,
        now: Instant,
    ) -> (Option<Seat>, Option<AdminClosure>) {
        let State { next, taken } = &mut *self.0.lock();
        let address = network(ip);
        let mut closed = None;
        if address.is_some() && taken.count(address) >= SHARE {
            closed = Some(AdminClosure::Share);
            let Some(evicted) = taken.evict_one_of(address) else { return (None, closed) };
            evicted.leave.cancel();
        }
        if taken.len() >= MAX {
            closed = Some(AdminClosure::Full);
            let Some(evicted) = taken.evict_any(0) else { return (None, closed) };
            evicted.leave.cancel();
        }
        let (id, leave) = (*next, CancellationToken::new());
        *next += 1;
        taken.insert(address, id, Taken { asked: now, waits: 0, leave: leave.clone() });
        (Some(Seat { id, address, seats: Arc::clone(self), leave }), closed)
    }
}

/// The connection that sent no request for the longest time. One that waits for a drain stays.
fn longest_idle(connections: &Connections<Taken>) -> Option<u64> {
    let idle = connections.iter().filter(|(_, taken)| taken.waits == 0);
    idle.min_by_key(|(id, taken)| (taken.asked, **id)).map(|(id, _)| *id)
}

/// The seat of one connection, until dropped.
#[derive(Debug)]
pub(super) struct Seat {
    id: u64,
    address: Option<IpAddr>,
    seats: Arc<Seats>,
    leave: CancellationToken,
}

impl Seat {
    /// Notes that a request came at `now`.
    pub(super) fn asked(&self, now: Instant) {
        self.change(|seat| seat.asked = now);
    }

    /// Notes that a request may wait as long as the guard lives.
    pub(super) fn wait(self: &Arc<Self>) -> Waits {
        self.change(|seat| seat.waits += 1);
        Waits(Arc::clone(self))
    }

    fn change(&self, change: impl FnOnce(&mut Taken)) {
        if let Some(taken) = self.seats.0.lock().taken.get_mut(self.address, self.id) {
            change(taken);
        }
    }

    /// Completes when the connection must close: with a reason if the client takes too long to read an answer or to send
    /// a request, with `None` if another connection got the seat.
    pub(super) async fn over(&self) -> Option<AdminClosure> {
        tokio::select! {
            () = self.leave.cancelled() => None,
            () = self.overstayed() => Some(AdminClosure::Slow),
        }
    }

    async fn overstayed(&self) {
        loop {
            let mut due = Instant::now() + STAY;
            self.change(|seat| {
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
        self.seats.0.lock().taken.remove(self.address, self.id);
    }
}

/// A request that may wait for its answer.
#[derive(Debug)]
pub(super) struct Waits(Arc<Seat>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.change(|seat| {
            seat.waits -= 1;
            // From now on the client has the usual time to read the answer.
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
        assert_eq!(seats.0.lock().taken.count(ip("10.9.9.9")), 9);
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
                prop_assert!(state.taken.count(address) <= SHARE);
            }
        }
    }
}
