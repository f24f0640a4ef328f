//! `/status.json` in front of real daemons.

use buildkit_lb::snapshot::{Snapshot, Time};

use crate::support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::buildctl_tls,
    eventually,
    proxy::Proxy,
};
use crate::{LongBuild, WAIT};

fn snapshot(proxy: &Proxy) -> Snapshot {
    serde_json::from_str(&proxy.admin("GET", "/status.json").1).expect("a snapshot")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_shows_who_builds_what_where_and_since_when() {
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let agent = authority.directory("agent-7", &Request { name: "agent-7", ..Request::CLIENT });
    let mut fleet = Buildkitd::fleet(2);
    let tls = ["--tls-dir", own.to_str().expect("UTF-8"), "--max-builds", "1"];
    let proxy = Proxy::in_front_of(&fleet).args(&tls).start();
    proxy.wait_ready(2, WAIT);
    let quiet = snapshot(&proxy);
    assert!(quiet.warnings.is_empty(), "{:?}", quiet.warnings);
    assert_eq!((quiet.pools[0].running, quiet.pools[0].ready, quiet.drain), (0, true, None));
    let certificate = &quiet.certificates[0];
    assert_eq!(certificate.side, "client");
    assert!(certificate.expires > Time::now(), "{certificate:?}");
    let start = |key| LongBuild::start(buildctl_tls(&proxy.addr(), &agent), key);
    let clients = ["a", "b", "c"].map(start);
    let busy = eventually("two builds run and one waits", WAIT, || {
        let now = snapshot(&proxy);
        let sent = now.builds.iter().all(|build| build.bytes_up > 100_000);
        (now.builds.len() == 2 && now.queue.len() == 1 && sent).then_some(now)
    });
    for build in &busy.builds {
        assert_eq!(build.identity.as_deref(), Some("agent-7"), "{build:?}");
        assert_eq!(build.client.as_deref(), Some("127.0.0.1"), "{build:?}");
        assert!(build.bytes_down > 0 && build.why.ends_with('.'), "{build:?}");
        assert!(build.arrived >= quiet.time && build.arrived <= busy.time, "{build:?}");
    }
    let queued = &busy.queue[0];
    assert_eq!(queued.identity.as_deref(), Some("agent-7"), "{queued:?}");
    assert_eq!((queued.position, queued.text.as_str()), (1, "2 of 2 slots are taken"));
    let loads = busy.backends.iter().map(snapshot_load).collect::<Vec<_>>();
    assert_eq!(loads, ["d0 ready 1/1", "d1 ready 1/1"]);
    assert_eq!((busy.pools[0].running, busy.pools[0].waiting), (2, 1));
    fleet[0].kill();
    let lost = eventually("the daemon is missed", WAIT, || {
        let now = snapshot(&proxy);
        (now.backends[0].state == "unhealthy").then_some(now)
    });
    assert!(lost.backends[0].since >= busy.time && lost.backends[0].cause.is_some(), "{lost:?}");
    assert_eq!(lost.backends[1].since, busy.backends[1].since, "the other's state holds");
    let warning = &lost.warnings[0];
    assert_eq!(warning.kind, "backend_unhealthy", "{warning:?}");
    assert!(warning.text.starts_with("Backend d0 has been unhealthy for "), "{warning:?}");
    proxy.process.signal("TERM");
    let draining = eventually("the proxy drains", WAIT, || snapshot(&proxy).drain);
    assert!(draining.connections > 0, "{draining:?}");
    drop(clients);
}

fn snapshot_load(backend: &buildkit_lb::snapshot::Backend) -> String {
    format!("{} {} {}", backend.name, backend.state, backend.load())
}
