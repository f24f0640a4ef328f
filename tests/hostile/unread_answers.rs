//! Answers of the whole fleet that nobody reads hold a bounded amount of memory.

use std::time::Duration;

use buildkit_lb::wire::{self, control::BuildHistoryRequest};

use crate::{
    bystander,
    stalled_readers::{client_without_window, stall},
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl_build, succeed},
        proxy::Proxy,
    },
};

const HISTORY: &str = "/moby.buildkit.v1.Control/ListenBuildHistory";

/// The number of calls of the attacker: 5 KB on the wire. The two daemons have 2 GiB to tell them.
const CALLS: u32 = 100;

/// What the proxy may hold for its clients, in MiB. All of the memory that it takes is compared with that, so that what
/// connections and sockets hold beside it makes no difference on a busy machine.
const BUDGET: u64 = 1_024;

/// Gives `daemon` a history of about ten MiB. Each record contains the arguments of its build.
fn write_history(daemon: &Buildkitd) {
    let context = Context::new("FROM scratch\nCOPY busybox /\n");
    for _ in 0..10 {
        let mut build = buildctl_build(&daemon.addr(), &context);
        for argument in 0..10 {
            build.args(["--opt", &format!("build-arg:A{argument}={}", "x".repeat(100 << 10))]);
        }
        succeed(&mut build);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_that_nobody_reads_hold_no_more_than_their_share() {
    let fleet = Buildkitd::fleet(2);
    fleet.iter().for_each(write_history);
    let proxy =
        Proxy::in_front_of(&fleet).args(&["--memory-budget", &format!("{BUDGET}MiB")]).start();
    proxy.wait_ready(2, Duration::from_secs(10));
    let before = proxy.process.memory_kib("VmRSS");
    for limit in [0, 1_000] {
        let request = BuildHistoryRequest { early_exit: true, limit, ..Default::default() };
        let mut attacker = client_without_window(&proxy).await;
        stall(&mut attacker, HISTORY, &wire::encode(&request), CALLS).await;
        bystander::builds(&proxy).await;
        let held = proxy.process.memory_kib("VmHWM").saturating_sub(before) >> 10;
        println!("limit {limit}: {held} MiB");
        assert!(held < BUDGET, "{held} MiB, and the daemons have 2 048 to tell");
    }
}
