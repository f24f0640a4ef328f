//! A client that knows the id of a session can build from its client's directory, so only the daemon learns the id.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use crate::support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl_build},
    eventually,
    proxy::Proxy,
    raw_client::RawClient,
    spray::{self, Noted},
};

/// The ids of the sessions that have passed the hop.
fn sessions(noted: &Noted) -> Vec<String> {
    let noted = noted.lock().expect("no panic");
    let ids = noted.iter().filter_map(|headers| headers.get("x-docker-expose-session-uuid"));
    ids.filter_map(|id| Some(id.to_str().ok()?.to_owned())).collect()
}

fn build(addr: &str, context: &Context) -> Child {
    let mut build = buildctl_build(addr, context);
    build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("buildctl runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_session_is_in_no_log_status_metric_or_error() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).args(&["--log-level", "debug"]).start();
    let (addr, noted) = spray::start_noting(proxy.socket()).await;
    let context = Context::busybox("RUN sleep 3");
    let mut client = build(&addr, &context);
    let running = eventually("the build runs", Duration::from_secs(20), || {
        let builds = proxy.status()["builds"].clone();
        Some(builds)
            .filter(|builds| builds[0]["session"].is_string() && !sessions(&noted).is_empty())
    });
    let id = sessions(&noted).remove(0);
    let thief = RawClient::connect(&proxy.socket()).await;
    let refused = thief.session(&id).await.ended().await;
    assert_eq!(refused.marker(), Some("session_open"), "{refused:?}");
    let (shown, status) =
        (running[0]["session"].as_str().expect("a text"), proxy.admin("GET", "/status.json").1);
    let build = running[0]["ref"].as_str().expect("a ref").to_owned();
    assert!(client.wait().expect("it ends").success());
    assert_eq!(proxy.build(&build)["session"], shown, "log and status agree");
    let told = eventually("the refusal is logged", Duration::from_secs(10), || {
        Some(proxy.process.log()).filter(|log| log.contains("session_open"))
    });
    for told in [told, status, proxy.admin("GET", "/metrics").1, refused.message()] {
        assert!(!told.contains(&id), "{id} is in: {told}");
    }
    assert!(refused.message().contains(shown), "{}", refused.message());
}
