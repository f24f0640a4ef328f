//! Finds a backend that fails builds for reasons of its own, by comparing how the builds of all backends end.
//!
//! This is plain logic without I/O or clock. A client can make its own build end with any status, and so can a frontend
//! image. For each backend, the client with the most failed builds is therefore left out, and the builds of the others
//! must be evidence enough. Builds of a single project are never enough, because the project itself may fail.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::Code;

/// How long the end of a build counts. A daemon whose disk was full five minutes ago may have cleaned up.
const WINDOW: Duration = Duration::from_secs(300);

/// How many of a backend's last builds count. With more, a daemon that has just become unfit would first have to fail
/// as many builds as it had built well before.
const RECENT: usize = 20;

/// How many builds a backend must have failed, including one of the client that is left out. Two in a row can be
/// chance, but each failed build costs somebody time.
const LEAST_FAULTS: usize = 3;

/// How many times higher a backend's share of failures must be than that of the others. If the cause is outside, such
/// as a registry that is down, all backends fail alike.
const TIMES_OTHERS: usize = 3;

/// How a build ended, as far as that says something about its backend.
#[derive(Debug, Clone, Copy)]
pub struct BuildEnd {
    /// A number that stands for the client of the build.
    pub client: u64,
    /// A number that stands for the project of the build, if that is known.
    pub key: Option<u64>,
    /// The status that the daemon sent.
    pub code: Code,
}

impl BuildEnd {
    /// Whether BuildKit gives this status to errors of the system below it.
    ///
    /// BuildKit sends `ResourceExhausted` for a full disk and for missing memory, `Internal` for an I/O error and for
    /// errors of its own database, and `Unavailable` if its worker does not answer. A step or a frontend that fails
    /// ends with `Unknown`.
    fn is_fault(&self) -> bool {
        matches!(self.code, Code::ResourceExhausted | Code::Internal | Code::Unavailable)
    }
}

/// What follows from the end of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The backend of the build fails builds for reasons of its own. The text gives the evidence.
    Unfit(String),
    /// These backends were found unfit while only one client built, and now another client builds too.
    Revoked(Vec<Arc<str>>),
}

/// The last builds of all backends of a fleet.
#[derive(Debug, Default)]
pub(super) struct Outliers {
    backends: HashMap<Arc<str>, VecDeque<(Instant, BuildEnd)>>,
    /// The backends that were found unfit while only this client built.
    by_one_client: HashMap<Arc<str>, u64>,
    /// The two clients that built last, with the times of their last builds. Two are enough to know whether a second
    /// client exists.
    last_clients: [Option<(u64, Instant)>; 2],
}

/// How many builds ended, and how many of them the backend failed.
#[derive(Debug, Default)]
struct Counts {
    builds: usize,
    faults: usize,
    /// The projects of the failed builds. A build without a key counts as a project of its own: it is not tied to one
    /// backend, so a fault of its own would show on all of them.
    projects: usize,
}

impl Outliers {
    /// Notes that a build ended on `backend` at `now`.
    pub(super) fn note(
        &mut self,
        backend: &Arc<str>,
        end: BuildEnd,
        now: Instant,
    ) -> Option<Verdict> {
        let recent = self.backends.entry(Arc::clone(backend)).or_default();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back((now, end));
        self.note_client(end.client, now);
        if let Some(revoked) = self.revoked(end.client) {
            return Some(Verdict::Revoked(revoked));
        }
        if !end.is_fault() {
            return None;
        }
        self.judge(backend, end, now).map(Verdict::Unfit)
    }

    /// Forgets the builds of a backend that starts anew, because it goes on probation or has been away.
    pub(super) fn clear(&mut self, backend: &str) {
        self.backends.remove(backend);
    }

    /// Forgets a backend that has left.
    pub(super) fn forget(&mut self, backend: &str) {
        self.clear(backend);
        self.by_one_client.remove(backend);
    }

    /// Removes and returns the verdicts that rest on a single client other than `client`.
    fn revoked(&mut self, client: u64) -> Option<Vec<Arc<str>>> {
        let of_another = |_: &Arc<str>, witness: &mut u64| *witness != client;
        let revoked: Vec<_> =
            self.by_one_client.extract_if(of_another).map(|(backend, _)| backend).collect();
        (!revoked.is_empty()).then_some(revoked)
    }

    fn note_client(&mut self, client: u64, now: Instant) {
        let [last, before] = &mut self.last_clients;
        if last.is_some_and(|(last, _)| last != client) {
            *before = *last;
        }
        *last = Some((client, now));
    }

    /// The evidence that `backend` is unfit, if there is enough.
    fn judge(&mut self, backend: &Arc<str>, last: BuildEnd, now: Instant) -> Option<String> {
        let alone = self.is_alone(last.client, now);
        let left_out = if alone { None } else { self.heaviest(backend, now) };
        let least = LEAST_FAULTS - usize::from(left_out.is_some());
        let own = self.count(now, left_out, |name| name == backend);
        if own.faults < least || own.projects < 2 || own.faults * 2 < own.builds {
            return None;
        }
        let others = self.count(now, left_out, |name| name != backend);
        // The shares are compared without a division, because the others may have no builds.
        if others.faults * own.builds * TIMES_OTHERS > own.faults * others.builds {
            return None;
        }
        if alone {
            self.by_one_client.insert(Arc::clone(backend), last.client);
        } else {
            self.by_one_client.remove(backend);
        }
        Some(format!(
            "it failed {} of {} builds for reasons of its own, the other backends {} of {}",
            own.faults, own.builds, others.faults, others.builds
        ))
    }

    /// Whether no other client has built anywhere.
    fn is_alone(&self, client: u64, now: Instant) -> bool {
        let mut last = self.last_clients.iter().flatten();
        last.all(|(other, at)| *other == client || now.saturating_duration_since(*at) >= WINDOW)
    }

    /// The client with the most failed builds on `backend`; of several, the one whose failures began first.
    fn heaviest(&self, backend: &Arc<str>, now: Instant) -> Option<u64> {
        let mut faults: Vec<(u64, usize)> = Vec::new();
        for (_, end) in self.ends(now).filter(|(name, end)| *name == backend && end.is_fault()) {
            match faults.iter_mut().find(|(client, _)| *client == end.client) {
                Some((_, faults)) => *faults += 1,
                None => faults.push((end.client, 1)),
            }
        }
        faults.into_iter().rev().max_by_key(|(_, faults)| *faults).map(|(client, _)| client)
    }

    fn count(
        &self,
        now: Instant,
        left_out: Option<u64>,
        wanted: impl Fn(&Arc<str>) -> bool,
    ) -> Counts {
        let (mut counts, mut keys) = (Counts::default(), BTreeSet::new());
        let counted =
            |(name, end): &(&Arc<str>, &BuildEnd)| wanted(name) && Some(end.client) != left_out;
        for (_, end) in self.ends(now).filter(counted) {
            counts.builds += 1;
            if end.is_fault() {
                counts.faults += 1;
                counts.projects += usize::from(end.key.is_none_or(|key| keys.insert(key)));
            }
        }
        counts
    }

    fn ends(&self, now: Instant) -> impl Iterator<Item = (&Arc<str>, &BuildEnd)> {
        let recent =
            move |(at, _): &&(Instant, BuildEnd)| now.saturating_duration_since(*at) < WINDOW;
        self.backends.iter().flat_map(move |(name, ends)| {
            ends.iter().filter(recent).map(move |(_, end)| (name, end))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Builds of a fleet, one after the other, at the same time.
    #[derive(Debug, Default)]
    struct Fleet {
        outliers: Outliers,
        unfit: BTreeSet<u8>,
    }

    impl Fleet {
        fn build(&mut self, backend: u8, client: u64, key: Option<u64>, code: Code, now: Instant) {
            let end = BuildEnd { client, key, code };
            match self.outliers.note(&backend.to_string().into(), end, now) {
                Some(Verdict::Unfit(_)) => _ = self.unfit.insert(backend),
                Some(Verdict::Revoked(names)) => {
                    self.unfit.retain(|backend| !names.contains(&backend.to_string().into()));
                }
                None => {}
            }
        }
    }

    const FULL_DISK: Code = Code::ResourceExhausted;

    #[test]
    fn a_backend_that_fails_builds_of_several_clients_and_projects_is_unfit() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for n in 0..2 {
            fleet.build(0, n, Some(n), FULL_DISK, now);
            fleet.build(1, n, Some(n), Code::Ok, now);
            assert_eq!(fleet.unfit.len(), 0, "two may be chance");
        }
        fleet.build(0, 2, Some(2), FULL_DISK, now);
        assert_eq!(fleet.unfit, BTreeSet::from([0]));
    }

    #[test]
    fn one_project_says_nothing_whoever_builds_it() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for client in 0..40 {
            fleet.build(0, client, Some(7), Code::Internal, now);
        }
        assert_eq!(fleet.unfit.len(), 0);
        fleet.build(0, 50, Some(8), Code::Internal, now);
        assert_eq!(fleet.unfit, BTreeSet::from([0]));
    }

    #[test]
    fn what_fails_on_all_backends_is_the_fault_of_none() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for n in 0..60 {
            fleet.build((n % 3) as u8, n, Some(n), Code::Unavailable, now);
            // The first build of all failed before any other backend had built.
            fleet.unfit.retain(|_| n >= 9);
        }
        assert_eq!(fleet.unfit.len(), 0);
    }

    #[test]
    fn a_backend_that_builds_more_than_it_fails_is_fit() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for n in 0..60 {
            let code = if n % 5 > 2 { FULL_DISK } else { Code::Unknown };
            fleet.build(0, n, Some(n), code, now);
            fleet.build(1, n, Some(n), Code::Ok, now);
        }
        assert_eq!(fleet.unfit.len(), 0);
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for n in 0..2 {
            fleet.build(0, n, Some(n), FULL_DISK, now);
        }
        fleet.build(0, 2, Some(2), FULL_DISK, now + WINDOW);
        assert_eq!(fleet.unfit.len(), 0);
    }

    #[test]
    fn the_word_of_an_only_client_counts_until_another_builds() {
        let (mut fleet, now) = (Fleet::default(), Instant::now());
        for key in 0..3 {
            fleet.build(0, 1, Some(key), FULL_DISK, now);
        }
        assert_eq!(fleet.unfit, BTreeSet::from([0]));
        fleet.build(1, 2, None, Code::Ok, now);
        assert_eq!(fleet.unfit.len(), 0);
        for key in 0..20 {
            fleet.build(0, 1, Some(key), FULL_DISK, now);
        }
        assert_eq!(fleet.unfit.len(), 0);
    }

    fn any_code() -> impl Strategy<Value = Code> {
        (0..17).prop_map(Code::from_i32)
    }

    fn builds<T: std::fmt::Debug>(
        client: impl Strategy<Value = T>,
    ) -> impl Strategy<Value = Vec<(u8, T, Option<u64>, Code)>> {
        let key = prop::option::of(0..5_u64);
        prop::collection::vec((0..4_u8, client, key, any_code()), 0..200)
    }

    proptest! {
        /// The other clients' builds end as they do on a fit daemon: well, or because of a fault of their own.
        #[test]
        fn one_client_cannot_make_a_backend_unfit_for_others(
            builds in builds(prop::option::of(1..4_u64)),
        ) {
            let (mut fleet, now) = (Fleet::default(), Instant::now());
            let mut others = false;
            for (backend, honest, key, code) in builds {
                let code = match honest {
                    Some(_) if BuildEnd { client: 0, key, code }.is_fault() => Code::Unknown,
                    _ => code,
                };
                fleet.build(backend, honest.unwrap_or_default(), key, code, now);
                others |= honest.is_some();
                prop_assert!(!others || fleet.unfit.is_empty());
            }
        }

        #[test]
        fn memory_is_bounded_by_the_fleet(builds in builds(any::<u64>())) {
            let (mut fleet, now) = (Fleet::default(), Instant::now());
            for (backend, client, key, code) in builds {
                fleet.build(backend, client, key, code, now);
            }
            let outliers = fleet.outliers;
            prop_assert!(outliers.backends.len() <= 4 && outliers.by_one_client.len() <= 4);
            prop_assert!(outliers.backends.values().all(|ends| ends.len() <= RECENT));
        }
    }
}
