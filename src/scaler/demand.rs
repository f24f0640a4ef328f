//! How many builds a pool is said to have: a pure function.

/// Builds for each daemon where neither the pool nor the trigger says how many: as many as a daemon takes at any
/// time before the consistent hash sends a project elsewhere.
pub(super) const DEFAULT_TARGET: u32 = 4;

/// What a pool has to do, and who is there to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Demand {
    /// Builds that run.
    pub(super) running: u64,
    /// Builds that wait for a daemon.
    pub(super) waiting: u64,
    /// Daemons, those that are not ready yet included.
    pub(super) daemons: u64,
    /// Builds that each daemon is to have.
    pub(super) target: u32,
}

impl Demand {
    /// The builds that the horizontal pod autoscaler is told of.
    ///
    /// It does nothing while their number is within 10 % of what the daemons take: of twenty full daemons and one
    /// build that waits, that build would wait for ever. So a build for which no daemon has room, or will have when
    /// it has started, is told as the least number that is more than 10 % above.
    pub(super) fn told(&self) -> u64 {
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

    /// The daemons that the horizontal pod autoscaler asks for, with its usual tolerance.
    fn wanted(demand: Demand) -> u64 {
        let (told, target) = (demand.told(), u64::from(demand.target));
        let room = demand.daemons * target;
        let within = room > 0 && (told * 10).abs_diff(room * 10) <= room;
        if within { demand.daemons } else { told.div_ceil(target) }
    }

    #[test]
    fn one_build_that_waits_behind_many_full_daemons_gets_another_daemon() {
        let demand = Demand { running: 80, waiting: 1, daemons: 20, target: 4 };
        assert_eq!(demand.told(), 89);
        assert!(wanted(demand) > 20);
    }

    #[test]
    fn a_build_that_waits_for_a_daemon_to_start_asks_for_no_more() {
        let demand = Demand { running: 0, waiting: 3, daemons: 1, target: 4 };
        assert_eq!((demand.told(), wanted(demand)), (3, 1));
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
                prop_assert_eq!(demand.told(), running + waiting);
            }
            prop_assert!(demand.told() >= running + waiting);
        }
    }
}
