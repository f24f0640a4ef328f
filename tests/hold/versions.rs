//! What a client is told while its build waits is true of the daemon that the build gets.

use std::time::Duration;

use crate::{
    clients::{LINE, TOLD_TWICE, builds, context, start, succeeds, until_it_shows},
    support::{buildkitd::Buildkitd, client::buildctl_build, eventually, proxy::Proxy},
};

#[test]
fn a_build_that_was_promised_a_new_daemons_features_does_not_go_to_an_old_one() {
    let mut new = Buildkitd::start("new");
    let mut old = Buildkitd::absent_old("old");
    let proxy = Proxy::in_front_of([&new, &old]).start();
    let learnt = |version: &str| {
        eventually("the version is known", Duration::from_secs(20), || {
            let records = proxy.records("capabilities of a version learnt");
            records.into_iter().find(|record| {
                record["version"].as_str().is_some_and(|own| own.starts_with(version))
            })
        })
    };
    learnt("v0.32");
    new.kill();
    eventually("it is missed", Duration::from_secs(60), || {
        (proxy.metric("buildkit_lb_backend_state", &["state=\"ready\""]) == 0.0).then_some(())
    });
    let context = context();
    let mut build = start(&buildctl_build(&proxy.addr(), &context));
    until_it_shows(&build, LINE, 1, TOLD_TWICE);
    old.restart();
    learnt("v0.16.0");
    // A client that has been told nothing yet may build there, and does so at once.
    succeeds(&mut start(&buildctl_build(&proxy.addr(), &context)));
    assert!(build.is_running(), "{}", build.log());
    assert_eq!(builds(&old), 1);
    new.restart();
    succeeds(&mut build);
    assert_eq!((builds(&old), builds(&new)), (1, 1));
}
