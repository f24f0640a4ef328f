//! The number of builds that KEDA is told of. A pure function.

/// The builds for each daemon, if neither the pool nor the trigger sets their number. A daemon takes as many at any
/// time before the consistent hash sends a project elsewhere.
pub(super) const DEFAULT_TARGET: u32 = 4;

/// The work of a pool, and the daemons for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    /// The builds that run.
    pub(super) running: u64,
    /// The builds that wait for a daemon.
    pub(super) waiting: u64,
    /// The daemons of the pool, including those that are not ready yet.
    pub(super) daemons: u64,
    /// The number of builds that each daemon should have.
    pub(super) target: u32,
}

impl Demand {
    /// The number of builds to report to the horizontal pod autoscaler.
    ///
    /// The autoscaler does nothing while this number is within 10 % of what the daemons take. With twenty full
    /// daemons and one waiting build, that build would wait forever. So if a build waits and the daemons, including
    /// those that start, have no room for it, the reported number is at least the smallest one that is more than 10
    /// % higher.
    pub(super) fn reported(&self) -> u64 {
        let builds = self.running + self.waiting;
        let room = self.daemons * u64::from(self.target);
        if self.waiting == 0 || builds <= room {
            return builds;
        }
        builds.max(room * 11 / 10 + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The number of daemons that the horizontal pod autoscaler asks for, with its usual tolerance.
    fn wanted(demand: Demand) -> u64 {
        let (told, target) = (demand.reported(), u64::from(demand.target));
        let room = demand.daemons * target;
        let within = room > 0 && (told * 10).abs_diff(room * 10) <= room;
        if within { demand.daemons } else { told.div_ceil(target) }
    }

    #[test]
    fn one_build_that_waits_behind_many_full_daemons_gets_another_daemon() {
        let demand = Demand { running: 80, waiting: 1, daemons: 20, target: 4 };
        assert_eq!(demand.reported(), 89);
        assert!(wanted(demand) > 20);
    }

    #[test]
    fn a_build_that_waits_for_a_daemon_to_start_asks_for_no_more() {
        let demand = Demand { running: 0, waiting: 3, daemons: 1, target: 4 };
        assert_eq!((demand.reported(), wanted(demand)), (3, 1));
        assert_eq!(wanted(Demand { daemons: 0, ..demand }), 1);
    }

    proptest! {
        #[test]
        fn whoever_waits_without_room_gets_a_daemon_and_nobody_else_does(
            running in 0..10_000_u64, waiting in 0..1000_u64, daemons in 0..1000_u64, target in 1..100_u32,
        ) {
            let demand = Demand { running, waiting, daemons, target };
            let room = daemons * u64::from(target);
            if waiting > 0 && running + waiting > room {
                prop_assert!(wanted(demand) > daemons);
            }
            if waiting == 0 || running + waiting <= room {
                prop_assert_eq!(demand.reported(), running + waiting);
            }
            prop_assert!(demand.reported() >= running + waiting);
        }
    }
}
