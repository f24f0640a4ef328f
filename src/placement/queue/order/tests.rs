use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const AFFINITY_WAIT: Duration = Duration::from_secs(10);

fn key(text: &str) -> Option<KeyHash> {
    Some(KeyHash::new(text))
}

/// The owners of all builds, in the order in which they are granted. `slots` builds run at once, and the one that
/// started first ends first.
fn served(order: &mut Order<char>, owners: &HashMap<Ticket, char>, slots: usize) -> Vec<char> {
    let (now, mut running, mut served) = (Instant::now(), VecDeque::new(), Vec::new());
    while !order.is_empty() {
        if running.len() == slots {
            order.end(&running.pop_front().expect("one runs"));
        }
        let ticket = order.grant(now, |_| Offer::Good).expect("a slot is free");
        running.push_back(owners[&ticket]);
        served.push(owners[&ticket]);
    }
    served
}

#[test]
fn the_one_build_of_an_owner_is_next_however_many_another_has() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    let mut enter = |owner| order.enter(&owner, None, now, false);
    let mut owners: HashMap<_, _> = (0..200).map(|_| (enter('a'), 'a')).collect();
    (0..4).for_each(|_| assert!(order.grant(now, |_| Offer::Good).is_some()));
    let late = order.enter(&'b', None, now, false);
    owners.insert(late, 'b');
    assert_eq!(order.in_order()[0], late);
    (0..4).for_each(|_| order.end(&'a'));
    assert_eq!(order.in_order()[0], late, "it has had no turn yet");
    assert_eq!(order.grant(now, |_| Offer::Good), Some(late));
}

#[test]
fn a_build_that_did_not_wait_was_a_turn_too() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    order.start(&'a');
    order.enter(&'a', None, now, false);
    let late = order.enter(&'b', None, now, false);
    order.end(&'a');
    assert_eq!(order.grant(now, |_| Offer::Good), Some(late));
}

#[test]
fn owners_take_turns_and_so_do_the_keys_of_one() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    let mut owners = HashMap::new();
    for owner in ['a', 'a', 'a', 'b', 'b', 'c'] {
        owners.insert(order.enter(&owner, None, now, false), owner);
    }
    assert_eq!(served(&mut order, &owners, 1), ['a', 'b', 'c', 'a', 'b', 'a']);
    let mut keys = HashMap::new();
    for name in ["x", "x", "x", "y", "z"] {
        keys.insert(order.enter(&'a', key(name), now, false), name);
    }
    let mut next = || order.grant(now, |_| Offer::Good).map(|ticket| keys[&ticket]);
    assert_eq!(std::array::from_fn(|_| next().expect("one waits")), ["x", "y", "z", "x", "x"]);
}

#[test]
fn an_owner_of_twice_the_weight_runs_twice_as_many() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    let mut owners = HashMap::new();
    for owner in ['a', 'b'] {
        for _ in 0..6 {
            owners.insert(order.enter(&owner, None, now, false), owner);
        }
    }
    order.weigh(&'b', Weight::new(2).expect("in range"));
    let first: Vec<_> = (0..6)
        .map(|_| owners[&order.grant(now, |_| Offer::Good).expect("all slots are free")])
        .collect();
    assert_eq!(first.iter().filter(|owner| **owner == 'b').count(), 4, "{first:?}");
}

#[test]
fn who_could_not_use_its_turn_is_first_of_its_owner_again() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    let since = now - Duration::from_secs(1);
    order.enter(&'a', key("x"), since, false);
    let other = order.enter(&'a', key("y"), now, false);
    assert!(order.grant(now, |_| Offer::Good).is_some());
    order.end(&'a');
    let back = order.enter(&'a', key("x"), since, true);
    assert_eq!(order.in_order(), [back, other]);
    assert_eq!(order.grant(now, |_| Offer::Good), Some(back));
}

#[test]
fn a_build_lets_others_pass_for_its_cache_and_no_longer_than_its_wait() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    let first = order.enter(&'a', key("x"), now, false);
    let second = order.enter(&'b', key("y"), now, false);
    let third = order.enter(&'b', key("y"), now, false);
    let offer = |ticket| if ticket == first { Offer::Cold } else { Offer::Good };
    // The build has waited long before there was a slot that it could have had.
    let now = now + AFFINITY_WAIT * 10;
    assert_eq!(order.affinity_wait_ends(now), None);
    assert_eq!(order.grant(now, offer), Some(second));
    assert_eq!(order.affinity_wait_ends(now), Some(now + AFFINITY_WAIT));
    assert_eq!(order.grant(now + AFFINITY_WAIT, offer), Some(first));
    assert_eq!(order.grant(now, offer), Some(third));
    assert_eq!(order.grant(now, offer), None);
}

#[test]
fn who_finds_no_slot_keeps_nobody_waiting() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    let stuck = order.enter(&'a', key("x"), now, false);
    let same = order.enter(&'a', key("x"), now, false);
    let free = order.enter(&'a', key("y"), now, false);
    let offer = |ticket| if ticket == stuck { Offer::Nothing } else { Offer::Good };
    assert_eq!([order.grant(now, offer), order.grant(now, offer)], [Some(same), Some(free)]);
    assert_eq!(order.grant(now, offer), None);
    assert_eq!(order.affinity_wait_ends(now), None);
}

#[test]
fn a_wait_that_is_over_hides_no_later_one() {
    let (mut order, now) = (Order::new(AFFINITY_WAIT), Instant::now());
    order.enter(&'a', key("x"), now, false);
    assert_eq!(order.grant(now, |_| Offer::Cold), None);
    let later = now + AFFINITY_WAIT / 2;
    order.enter(&'b', key("y"), later, false);
    assert_eq!(order.grant(later, |_| Offer::Cold), None);
    // No slot is free when the first build would take any.
    let over = now + AFFINITY_WAIT;
    assert_eq!(order.grant(over, |_| Offer::Nothing), None);
    assert_eq!(order.affinity_wait_ends(over), Some(later + AFFINITY_WAIT));
}

/// What may happen to a queue.
#[derive(Debug, Clone)]
enum Step {
    Enter {
        owner: u8,
        key: u8,
    },
    /// The client of a waiting build goes away.
    Leave(prop::sample::Index),
    /// A slot is free. Is there a build that it fits?
    Grant,
    /// A running build ends.
    End(prop::sample::Index),
    /// A build could not use its slot.
    Back(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u8, 0..3_u8).prop_map(|(owner, key)| Step::Enter { owner, key }),
        1 => any::<prop::sample::Index>().prop_map(Step::Leave),
        3 => Just(Step::Grant),
        2 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => any::<prop::sample::Index>().prop_map(Step::Back),
    ]
}

/// What the test knows about a build.
type Known = (u8, u8, Instant);

proptest! {
    #[test]
    fn turns_are_fair_first_come_first_served_in_a_key_and_never_lost(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let (mut order, mut now) = (Order::new(AFFINITY_WAIT), Instant::now());
        let mut waiting: BTreeMap<Ticket, Known> = BTreeMap::new();
        let mut running: Vec<Known> = Vec::new();
        for step in steps {
            now += Duration::from_millis(1);
            match step {
                Step::Enter { owner, key: name } => {
                    let ticket = order.enter(&owner, key(&name.to_string()), now, false);
                    waiting.insert(ticket, (owner, name, now));
                }
                Step::Leave(index) if !waiting.is_empty() => {
                    let ticket = *index.get(&waiting.keys().copied().collect::<Vec<_>>());
                    order.leave(ticket);
                    waiting.remove(&ticket);
                }
                Step::Grant => {
                    let next = order.in_order().first().copied();
                    let granted = order.grant(now, |_| Offer::Good);
                    prop_assert_eq!(granted, next);
                    prop_assert_eq!(granted.is_none(), waiting.is_empty());
                    let Some(ticket) = granted else { continue };
                    let known = waiting.remove(&ticket).expect("it waits");
                    let (owner, name, since) = known;
                    let runs = |owner: u8| running.iter().filter(|other| other.0 == owner).count();
                    for (other, others, first) in waiting.values() {
                        prop_assert!(runs(owner) <= runs(*other), "max-min fairness");
                        let same = (*other, *others) == (owner, name);
                        prop_assert!(!same || since <= *first, "first come, first served");
                    }
                    running.push(known);
                }
                Step::End(index) if !running.is_empty() => {
                    let (owner, ..) = running.swap_remove(index.index(running.len()));
                    order.end(&owner);
                }
                Step::Back(index) if !running.is_empty() => {
                    let known = running.swap_remove(index.index(running.len()));
                    let (owner, name, since) = known;
                    order.end(&owner);
                    let ticket = order.enter(&owner, key(&name.to_string()), since, true);
                    waiting.insert(ticket, known);
                }
                _ => {}
            }
            prop_assert_eq!(order.len(), waiting.len());
            let mut listed = order.in_order();
            listed.sort();
            prop_assert_eq!(listed, waiting.keys().copied().collect::<Vec<_>>());
        }
        // Nobody starves: with one slot, all waiting builds are served.
        while let Some(ticket) = order.grant(now, |_| Offer::Good) {
            waiting.remove(&ticket).expect("it waits");
        }
        prop_assert!(waiting.is_empty());
        running.iter().for_each(|(owner, ..)| order.end(owner));
    }

    #[test]
    fn of_two_daemons_none_is_idle_longer_than_a_builds_wait(
        homes in prop::collection::vec((0..3_u8, 0..2_usize), 1..40),
    ) {
        // The cache of each build is on one of two daemons with one slot, and every build takes a second.
        let (mut order, mut now) = (Order::new(AFFINITY_WAIT), Instant::now());
        let mut home = HashMap::new();
        for (owner, daemon) in homes {
            let ticket = order.enter(&owner, key(&daemon.to_string()), now, false);
            home.insert(ticket, (owner, daemon));
        }
        let mut daemons: [Option<u8>; 2] = [None; 2];
        let mut idle = [0; 2];
        while !order.is_empty() {
            for owner in daemons.iter_mut().filter_map(Option::take) {
                order.end(&owner);
            }
            for daemon in 0..2 {
                let warm = |ticket| if home[&ticket].1 == daemon { Offer::Good } else { Offer::Cold };
                let granted = order.grant(now, warm);
                daemons[daemon] = granted.map(|ticket| home[&ticket].0);
                idle[daemon] = if granted.is_some() || order.is_empty() { 0 } else { idle[daemon] + 1 };
                prop_assert!(idle[daemon] <= AFFINITY_WAIT.as_secs(), "{daemon} is idle");
            }
            now += Duration::from_secs(1);
        }
    }
}
