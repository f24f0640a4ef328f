//! The rules that the policies promise, tested on plain facts.

mod hash;
mod load;
mod properties;

use std::sync::Arc;

use rand::{SeedableRng, rngs::StdRng};

use super::*;

/// A fleet that consists of plain facts.
struct Facts {
    all: Vec<Arc<Candidate>>,
    candidates: Candidates,
    now: Instant,
}

fn facts(members: impl IntoIterator<Item = (usize, u32)>) -> Facts {
    let totals = Arc::new(Totals::default());
    let candidate = |(id, capacity)| Candidate::new(&format!("b-{id}"), capacity, None, &totals);
    let all: Vec<_> = members.into_iter().map(candidate).map(Arc::new).collect();
    let candidates = Candidates::new(all.clone(), &totals);
    Facts { all, candidates, now: Instant::now() }
}

fn equal(count: usize) -> Facts {
    facts((0..count).map(|id| (id, 1)))
}

impl Facts {
    fn choose(&self, config: Policy, request: &Request<'_>, rng: &mut StdRng) -> Option<Choice> {
        config.choose(request, &self.candidates, self.now, rng)
    }

    /// The choice of the consistent hash, with the default limit.
    fn hashed(&self, key: &str) -> Choice {
        self.choose(Policy::default(), &request(key), &mut rng()).expect("a choice")
    }
}

const GOOD: Status =
    Status { cordoned: false, ejected: false, unready: false, degraded: false, departed: false };
const CORDONED: Status = Status { cordoned: true, ..GOOD };
const EJECTED: Status = Status { ejected: true, ..GOOD };
const DEGRADED: Status = Status { degraded: true, ..GOOD };

fn request(key: &str) -> Request<'static> {
    Request { key: Some(KeyHash::new(key)), warm: None, tried: &[], slots: None }
}

const NO_KEY: Request<'static> = Request { key: None, warm: None, tried: &[], slots: None };

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn with(policy: PolicyKind) -> Policy {
    Policy::default().with(policy)
}

const POLICIES: [PolicyKind; 3] =
    [PolicyKind::Random, PolicyKind::LeastBuilds, PolicyKind::ConsistentHash];

#[test]
fn no_candidate_no_choice() {
    for policy in POLICIES {
        assert_eq!(equal(0).choose(with(policy), &request("key"), &mut rng()), None);
        let facts = equal(2);
        facts.all.iter().for_each(|candidate| candidate.set_status(CORDONED));
        assert_eq!(facts.choose(with(policy), &request("key"), &mut rng()), None);
    }
}

#[test]
fn when_none_is_ready_all_but_the_cordoned_are_tried() {
    for policy in POLICIES {
        let facts = equal(3);
        facts.all[0].set_status(CORDONED);
        facts.all[1].set_status(EJECTED);
        facts.all[2].set_status(EJECTED);
        let request = Request { tried: &[2], ..request("key") };
        let choice = facts.choose(with(policy), &request, &mut rng()).expect("a choice");
        assert_eq!(choice.index, 1, "{policy}");
    }
}

#[test]
fn the_one_ready_among_many_is_found_by_every_policy() {
    let facts = equal(200);
    facts.all.iter().for_each(|candidate| candidate.set_status(EJECTED));
    facts.all[123].set_status(Status::default());
    for policy in POLICIES {
        let choice = facts.choose(with(policy), &request("key"), &mut rng()).expect("a choice");
        assert_eq!(choice.index, 123, "{policy}");
    }
}

#[test]
fn a_degraded_backend_takes_builds_only_where_no_other_does() {
    let facts = equal(3);
    let home = facts.hashed("key").index;
    facts.all[home].set_status(DEGRADED);
    // This holds whatever the others run, and however warm the key is here.
    let others: Vec<_> = (0..3).filter(|index| *index != home).collect();
    others.iter().for_each(|index| (0..50).for_each(|_| facts.all[*index].start_build()));
    let warm = Some(Warm::new(&facts.all[home]));
    for policy in POLICIES {
        let request = Request { warm, ..request("key") };
        let choice = facts.choose(with(policy), &request, &mut rng()).expect("a choice");
        assert_ne!(choice.index, home, "{policy}");
    }
    let choice = facts.hashed("key");
    assert_eq!(choice.outcome, Outcome::Failover);
    assert_eq!(choice.passed_over, Some((home, Obstacle::Degraded)));
    // A backend that does not answer at all is worse.
    others.iter().for_each(|index| facts.all[*index].set_status(EJECTED));
    for policy in POLICIES {
        let choice = facts.choose(with(policy), &request("key"), &mut rng()).expect("a choice");
        assert_eq!(choice.index, home, "{policy}");
    }
}

#[test]
fn a_load_factor_reads_back_and_has_a_range() {
    for text in ["1.25", "2", "10", "1.01", "off"] {
        assert_eq!(text.parse::<LoadFactor>().expect(text).to_string(), text);
    }
    for text in ["1", "0.8", "10.1", "NaN", "inf", "-2", "", "on"] {
        assert!(text.parse::<LoadFactor>().is_err(), "{text}");
    }
}
