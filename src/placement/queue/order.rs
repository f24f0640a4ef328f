//! Whose turn it is: a state machine without I/O, lock or clock.
//!
//! Owners take turns by what they run (max-min fairness). The next slot goes to the owner with the fewest running
//! builds for its weight; of several such owners, to the one that was served longest ago. The affinity keys of one
//! owner take turns, and of one key the build that has waited longest comes first.
//!
//! A build whose cache is on a daemon without a free slot lets others pass for a limited time (delay scheduling:
//! Zaharia et al., EuroSys 2010).

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

use crate::{client::Weight, policy::KeyHash};

/// The number of a waiting build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// What the fleet can offer to a waiting build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// No slot that the build could take.
    Nothing,
    /// A slot on a daemon without the build's cache. The daemon with the cache has no free slot.
    Cold,
    /// As good a slot as the build could get.
    Good,
}

/// All waiting builds of one pool, and how many builds of each owner run.
#[derive(Debug)]
pub struct Order<O> {
    owners: HashMap<O, Owner>,
    waiting: HashMap<Ticket, Waiter<O>>,
    /// How long a build lets others pass in order to wait for its cache.
    affinity_wait: Duration,
    next_ticket: u64,
    grants: u64,
}

/// The builds of one owner.
#[derive(Debug, Default)]
struct Owner {
    running: usize,
    /// The lines of the owner, the next one first. No line is empty.
    lines: VecDeque<Line>,
    waiting: usize,
    /// The number of the grant that the owner got last.
    served: u64,
    weight: Weight,
}

/// The builds of one affinity key, the one that has waited longest first.
#[derive(Debug)]
struct Line {
    key: Option<KeyHash>,
    tickets: BTreeSet<(Instant, Ticket)>,
}

#[derive(Debug)]
struct Waiter<O> {
    owner: O,
    key: Option<KeyHash>,
    since: Instant,
    /// When the build first let another build pass.
    passed: Option<Instant>,
}

impl<O: Clone + Eq + Hash> Order<O> {
    /// An order without any builds. A build lets others pass for `affinity_wait` in order to wait for its cache.
    pub fn new(affinity_wait: Duration) -> Self {
        let (owners, waiting) = (HashMap::new(), HashMap::new());
        Self { owners, waiting, affinity_wait, next_ticket: 0, grants: 0 }
    }

    /// How many builds wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no build waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nobody waits or runs.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.owners.is_empty() && self.waiting.is_empty()
    }

    /// How many builds of `owner` wait.
    pub fn waiting_of(&self, owner: &O) -> usize {
        self.owners.get(owner).map_or(0, |owner| owner.waiting)
    }

    /// Adds a build of `owner` that has waited since `since`.
    ///
    /// A build that comes `back`, because it could not use its slot, is the first of its owner again.
    pub fn enter(&mut self, owner: &O, key: Option<KeyHash>, since: Instant, back: bool) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let of = self.owner(owner);
        of.waiting += 1;
        let at = of.lines.iter().position(|line| line.key == key);
        let mut line = match at {
            Some(at) if back => of.lines.remove(at),
            Some(at) => {
                of.lines[at].tickets.insert((since, ticket));
                None
            }
            None => Some(Line { key, tickets: BTreeSet::new() }),
        };
        if let Some(mut line) = line.take() {
            line.tickets.insert((since, ticket));
            if back { of.lines.push_front(line) } else { of.lines.push_back(line) }
        }
        let waiter = Waiter { owner: owner.clone(), key, since, passed: None };
        self.waiting.insert(ticket, waiter);
        ticket
    }

    /// Gives `owner` this weight from now on. Nothing happens if the owner has no build.
    pub fn weigh(&mut self, owner: &O, weight: Weight) {
        if let Some(owner) = self.owners.get_mut(owner) {
            owner.weight = weight;
        }
    }

    /// Removes a build that no longer waits. Nothing happens if it has been removed already.
    pub fn leave(&mut self, ticket: Ticket) {
        let Some(waiter) = self.waiting.remove(&ticket) else { return };
        let Some(owner) = self.owners.get_mut(&waiter.owner) else { return };
        owner.waiting -= 1;
        if let Some(at) = owner.lines.iter().position(|line| line.key == waiter.key) {
            owner.lines[at].tickets.remove(&(waiter.since, ticket));
            if owner.lines[at].tickets.is_empty() {
                owner.lines.remove(at);
            }
        }
        self.forget_idle(&waiter.owner);
    }

    /// Counts a running build of `owner` that did not wait. It counts as the owner's turn.
    pub fn start(&mut self, owner: &O) {
        self.grants += 1;
        let served = self.grants;
        let of = self.owner(owner);
        (of.running, of.served) = (of.running + 1, served);
    }

    /// Counts one running build less.
    pub fn end(&mut self, owner: &O) {
        if let Some(of) = self.owners.get_mut(owner) {
            of.running = of.running.saturating_sub(1);
        }
        self.forget_idle(owner);
    }

    /// Removes the next build that gets a slot, and counts it as running. `offer` tells what the fleet can offer to a
    /// build.
    pub fn grant(
        &mut self,
        now: Instant,
        mut offer: impl FnMut(Ticket) -> Offer,
    ) -> Option<Ticket> {
        let ticket = match self.next(now, &mut offer) {
            Ok(ticket) => ticket,
            Err(passing) => {
                passing.into_iter().for_each(|head| self.pass_line(head, now));
                return None;
            }
        };
        let waiter = &self.waiting[&ticket];
        let (owner, key) = (waiter.owner.clone(), waiter.key);
        self.grants += 1;
        if let Some(of) = self.owners.get_mut(&owner) {
            of.running += 1;
            of.served = self.grants;
            // The key has had its turn.
            if let Some(at) = of.lines.iter().position(|line| line.key == key)
                && let Some(line) = of.lines.remove(at)
            {
                of.lines.push_back(line);
            }
        }
        self.leave(ticket);
        Some(ticket)
    }

    /// The next build that gets a slot. If no build takes one, the builds that let others pass.
    fn next(
        &mut self,
        now: Instant,
        offer: &mut impl FnMut(Ticket) -> Offer,
    ) -> Result<Ticket, Vec<Ticket>> {
        let mut passing = Vec::new();
        for line in lines(&self.owners) {
            for (_, ticket) in &line.tickets {
                let Some(waiter) = self.waiting.get_mut(ticket) else { continue };
                match offer(*ticket) {
                    // Another build of the same key may find a slot.
                    Offer::Nothing => {}
                    Offer::Cold if now < *waiter.passed.get_or_insert(now) + self.affinity_wait => {
                        passing.push(*ticket);
                        break;
                    }
                    Offer::Cold | Offer::Good => return Ok(*ticket),
                }
            }
        }
        Err(passing)
    }

    /// A slot stays free for the builds of the line of `head`. The wait of all of them begins now; otherwise a slot
    /// could be idle for as many waits as the line has builds.
    fn pass_line(&mut self, head: Ticket, now: Instant) {
        let Some(waiter) = self.waiting.get(&head) else { return };
        let Some(owner) = self.owners.get(&waiter.owner) else { return };
        let Some(line) = owner.lines.iter().find(|line| line.key == waiter.key) else { return };
        for (_, ticket) in &line.tickets {
            if let Some(waiter) = self.waiting.get_mut(ticket) {
                waiter.passed.get_or_insert(now);
            }
        }
    }

    /// When the next build stops letting others pass, after `now`.
    pub fn affinity_wait_ends(&self, now: Instant) -> Option<Instant> {
        let passed = self.waiting.values().filter_map(|waiter| waiter.passed);
        passed.map(|passed| passed + self.affinity_wait).filter(|ends| *ends > now).min()
    }

    /// All waiting builds, in the order in which they would be served if nothing else ran, came or ended.
    pub fn in_order(&self) -> Vec<Ticket> {
        let mut all = Vec::with_capacity(self.waiting.len());
        for owner in self.owners.values() {
            for (before, ticket) in owner.in_order().into_iter().enumerate() {
                all.push((owner.running + before, owner, ticket));
            }
        }
        all.sort_by(|(a, of_a, first), (b, of_b, second)| {
            compare((*a, of_a), (*b, of_b)).then(first.cmp(second))
        });
        all.into_iter().map(|(_, _, ticket)| ticket).collect()
    }

    fn owner(&mut self, owner: &O) -> &mut Owner {
        self.owners.entry(owner.clone()).or_default()
    }

    /// Forgets an owner who runs nothing and waits for nothing, so that memory is bounded.
    fn forget_idle(&mut self, owner: &O) {
        if self.owners.get(owner).is_some_and(|of| of.running == 0 && of.waiting == 0) {
            self.owners.remove(owner);
        }
    }
}

impl Owner {
    /// The owner's builds, in the order in which the keys take turns.
    fn in_order(&self) -> Vec<Ticket> {
        let mut lines: Vec<_> = self.lines.iter().map(|line| line.tickets.iter()).collect();
        let mut all = Vec::with_capacity(self.waiting);
        while all.len() < self.waiting {
            all.extend(lines.iter_mut().filter_map(Iterator::next).map(|(_, ticket)| *ticket));
        }
        all
    }

    /// The owner's build that came first, and when it came.
    fn first(&self) -> Option<(Instant, Ticket)> {
        self.lines.iter().filter_map(|line| line.tickets.first()).min().copied()
    }
}

/// All lines, beginning with those of the owner whose turn it is.
fn lines<O>(owners: &HashMap<O, Owner>) -> Vec<&Line> {
    let mut owners: Vec<&Owner> = owners.values().filter(|of| of.waiting > 0).collect();
    owners.sort_by(|a, b| compare((a.running, a), (b.running, b)));
    owners.into_iter().flat_map(|owner| &owner.lines).collect()
}

/// Which of two owners comes first if they run this many builds, each divided by the weight of its owner.
fn compare((a, of_a): (usize, &Owner), (b, of_b): (usize, &Owner)) -> Ordering {
    // Each number multiplied by the other's weight compares as each divided by its own.
    let weighed = |builds: usize, other: &Owner| builds * usize::from(other.weight.get());
    let by_builds = weighed(a, of_b).cmp(&weighed(b, of_a));
    by_builds.then(of_a.served.cmp(&of_b.served)).then(of_a.first().cmp(&of_b.first()))
}

#[cfg(test)]
mod tests;
