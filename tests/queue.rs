//! Builds that wait for their turn: for a backend that takes them, or for a free slot.
#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{future::pending, path::Path, time::Duration};

use buildkit_lb::wire::{self, control::SolveRequest};
use bytes::Bytes;
use serde_json::{Value, json};
use support::{
    certificates::{Authority, Request},
    eventually,
    fake_daemon::FakeDaemon,
    free_port,
    proxy::{Builder, Proxy},
    raw_client::{Call, Ended, RawClient},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

const WAIT: Duration = Duration::from_secs(20);

/// A proxy whose only daemon will start on `port` later.
fn before_its_daemon(port: u16, args: &[&str]) -> Proxy {
    Builder::default().backend(&format!("late=tcp://127.0.0.1:{port}")).args(args).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_wait_for_the_first_backend_and_run_on_it() {
    let port = free_port();
    let proxy = before_its_daemon(port, &[]);
    let client = RawClient::connect(&proxy.socket()).await;
    let mut builds = Vec::new();
    for number in 0..3 {
        let (id, session) = (format!("r{number}"), format!("s{number}"));
        builds.push((client.session(&session).await, client.solve(&id, &session).await));
    }
    // Each Session waits for its Solve, which waits for a backend.
    eventually("all wait", WAIT, || {
        (proxy.metric("buildkit_lb_parked_streams", &[]) >= 3.0).then_some(())
    });
    let daemon = FakeDaemon::start_at("late", port).await;
    eventually("all arrive", WAIT, || {
        let seen = |method| daemon.seen(method).len() == 3;
        (seen("Control/Solve") && seen("Control/Session")).then_some(())
    });
    daemon.finish();
    for (_session, solve) in builds {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_has_waited_as_long_as_it_may_is_refused_with_the_reason() {
    let proxy = before_its_daemon(free_port(), &["--max-wait", "1s"]);
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    let status = client.by_ref("Status", "r").await;
    let ping = client.bridge("Ping", "r").await;
    let solve = client.solve("r", "s").await;
    for ended in [solve.ended().await, ping.ended().await] {
        assert_eq!((ended.code(), ended.marker()), (Some(14), Some("waited_out")), "{ended:?}");
        let told = ended.message();
        assert!(told.contains("within 1s") && told.contains("backend late"), "{told}");
    }
    assert_eq!(status.ended().await.code(), Some(0), "an error here would hide the Solve's");
    session.upload.send_data(Bytes::new(), true).expect("half-closed");
    assert_eq!(session.ended().await.code(), Some(0));
}

/// A build on a connection of its own, so that it belongs together with no other build.
async fn build(proxy: &Proxy, id: &str) -> Call {
    RawClient::connect(&proxy.socket()).await.solve(id, &format!("session-{id}")).await
}

/// The same from another address.
async fn build_from(address: &str, proxy: &Proxy, id: &str) -> Call {
    let client = RawClient::connect_from(address, &proxy.socket()).await;
    client.solve(id, &format!("session-{id}")).await
}

/// Waits until exactly `count` builds wait for their turn.
fn queued(proxy: &Proxy, count: usize) -> Vec<Value> {
    eventually(&format!("{count} wait"), WAIT, || {
        let queue = proxy.status()["queue"].as_array().expect("a list").clone();
        (queue.len() == count).then_some(queue)
    })
}

/// Waits until `daemon` has seen `count` builds.
fn seen(daemon: &FakeDaemon, count: usize) -> Vec<String> {
    eventually(&format!("{count} builds arrive"), WAIT, || {
        let seen = daemon.seen("Control/Solve");
        let ids: Vec<_> = seen.iter().map(support::fake_daemon::Seen::id).collect();
        // The daemon sees a call before the message of the call has come.
        (ids.len() == count && ids.iter().all(|id| !id.is_empty())).then_some(ids)
    })
}

/// One daemon that runs `slots` builds at once.
async fn limited(slots: usize, args: &[&str]) -> (FakeDaemon, Proxy) {
    let daemon = FakeDaemon::start("only").await;
    let slots = slots.to_string();
    let builder = Builder::default().backend(&daemon.backend());
    let proxy = builder.args(&["--max-builds", &slots]).args(args).start();
    proxy.wait_ready(1, WAIT);
    (daemon, proxy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_runs_as_many_builds_as_it_has_slots_and_the_next_when_one_ends() {
    let (daemon, proxy) = limited(2, &[]).await;
    let first = build(&proxy, "r1").await;
    let second = build(&proxy, "r2").await;
    seen(&daemon, 2);
    let third = build(&proxy, "r3").await;
    let queue = queued(&proxy, 1);
    let told = |name: &str| queue[0][name].clone();
    assert_eq!((told("ref"), told("position")), ("r3".into(), 1.into()));
    assert_eq!((told("cause"), told("text")), ("busy".into(), "2 of 2 slots are taken".into()));
    assert_eq!((told("client"), told("pool")), ("127.0.0.1".into(), "default".into()));
    assert_eq!(proxy.metric("buildkit_lb_queue_depth", &[]), 1.0);
    // The client of the first build goes away.
    drop(first);
    assert_eq!(seen(&daemon, 3)[2], "r3");
    assert!(queued(&proxy, 0).is_empty());
    daemon.finish();
    for solve in [second, third] {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
    let record = proxy.build("r3");
    assert_eq!(record["queue_cause"], "busy");
    assert!(record["queue_wait_ms"].as_u64() <= record["wait_ms"].as_u64(), "{record}");
    assert!(proxy.build("r2")["queue_wait_ms"].is_null(), "it did not wait");
    assert_eq!(proxy.metric("buildkit_lb_queue_left_total", &["granted"]), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_one_build_of_a_client_is_next_whatever_another_has_sent() {
    let (daemon, proxy) = limited(1, &["--max-waiting-per-client", "200"]).await;
    let mut all = vec![build(&proxy, "a0").await];
    seen(&daemon, 1);
    all.push(build(&proxy, "a1").await);
    queued(&proxy, 1);
    for number in 2..200 {
        all.push(build(&proxy, &format!("a{number}")).await);
    }
    queued(&proxy, 199);
    let one = build_from("127.0.0.2", &proxy, "b").await;
    let queue = queued(&proxy, 200);
    assert_eq!((&queue[0]["ref"], &queue[0]["client"]), (&"b".into(), &"127.0.0.2".into()));
    drop(all.remove(0));
    assert_eq!(seen(&daemon, 2)[1], "b");
    // Of the builds of one client, the oldest is first.
    drop(one);
    assert_eq!(seen(&daemon, 3)[2], "a1");
    // All clients leave at once, and each frees its place.
    drop(all);
    assert!(queued(&proxy, 0).is_empty());
    eventually("nobody runs", WAIT, || {
        (proxy.metric("buildkit_lb_builds_active", &["only"]) == 0.0).then_some(())
    });
}

/// A rule for each of two clients.
const WEIGHTS: &str = "
listen = 'tcp://127.0.0.1:0'
[[access]]
clients = ['heavy']
weight = 2
[[access]]
clients = ['*']
";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_twice_the_weight_gets_twice_as_many_slots() {
    let daemon = FakeDaemon::start("only").await;
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let builder = Builder::default().backend(&daemon.backend()).file(WEIGHTS);
    let args = ["--max-builds", "3", "--tls-dir", own.to_str().expect("UTF-8")];
    let proxy = builder.args(&args).start();
    proxy.wait_ready(1, WAIT);
    let [first, light, heavy] = ["first", "light", "heavy"]
        .map(|name| authority.directory(name, &Request { name, names: &[], ..Request::CLIENT }));
    let build = async |directory: &Path, id: &str| {
        let client = RawClient::connect_tls(&proxy.socket(), directory).await;
        let session = format!("session-{id}");
        (client.session(&session).await, client.solve(id, &session).await)
    };
    let mut running = Vec::new();
    for number in 0..3 {
        running.push(build(&first, &format!("first-{number}")).await);
    }
    seen(&daemon, 3);
    let mut waiting = Vec::new();
    for number in 0..3 {
        waiting.push(build(&light, &format!("light-{number}")).await);
        waiting.push(build(&heavy, &format!("heavy-{number}")).await);
    }
    queued(&proxy, 6);
    drop(running);
    let granted = &seen(&daemon, 6)[3..];
    let of_heavy = granted.iter().filter(|id| id.starts_with("heavy")).count();
    assert_eq!(of_heavy, 2, "{granted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_waiting_clients_that_leave_take_all_along() {
    let _ = rlimit::increase_nofile_limit(4096);
    let (daemon, proxy) = limited(1, &["--max-waiting-per-client", "1000"]).await;
    let running = build(&proxy, "running").await;
    seen(&daemon, 1);
    let mut waiting = Vec::new();
    for number in 0..1000 {
        let (id, session) = (format!("w{number}"), format!("s{number}"));
        let client = RawClient::connect(&proxy.socket()).await;
        let session_call = client.session(&session).await;
        let status = client.by_ref("Status", &id).await;
        waiting.push((session_call, status, client.solve(&id, &session).await));
    }
    let gauge = |name: &str, value: f64| {
        eventually(&format!("{name} is {value}"), Duration::from_secs(120), || {
            (proxy.metric(name, &[]) == value).then_some(())
        });
    };
    gauge("buildkit_lb_queue_depth", 1000.0);
    drop(waiting);
    gauge("buildkit_lb_queue_depth", 0.0);
    gauge("buildkit_lb_parked_streams", 0.0);
    gauge("buildkit_lb_connections_active", 1.0);
    assert_eq!(proxy.metric("buildkit_lb_queue_left_total", &["client_gone"]), 1000.0);
    assert_eq!(daemon.seen("Control/Solve").len(), 1, "no daemon has seen them");
    daemon.finish();
    assert_eq!(running.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bake_of_more_targets_than_slots_runs_whole_and_counts() {
    let (daemon, proxy) = limited(4, &[]).await;
    let other = build(&proxy, "other").await;
    seen(&daemon, 1);
    let client = RawClient::connect(&proxy.socket()).await;
    let shared = [("local-sessionid:context", "shared"), ("filename", "Dockerfile")];
    let mut targets = Vec::new();
    for number in 0..40 {
        let (id, session) = (format!("t{number}"), format!("s{number}"));
        targets.push(client.solve_with(&id, &session, &shared, &[]).await);
    }
    seen(&daemon, 41);
    let late = build(&proxy, "late").await;
    queued(&proxy, 1);
    daemon.finish();
    for solve in targets.into_iter().chain([other, late]) {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_of_a_client_waits_for_no_slot() {
    let (daemon, proxy) = limited(1, &[]).await;
    let running = build(&proxy, "r").await;
    seen(&daemon, 1);
    let client = RawClient::connect(&proxy.socket()).await;
    let request = SolveRequest { r#ref: "probe".into(), internal: true, ..Default::default() };
    let path = "/moby.buildkit.v1.Control/Solve";
    let probe = client.send(path, &[], wire::encode(&request)).await;
    assert_eq!(seen(&daemon, 2)[1], "probe");
    daemon.finish();
    for solve in [running, probe] {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_so_with_its_numbers() {
    let limits = ["--max-waiting", "3", "--max-waiting-per-client", "2"];
    let (daemon, proxy) = limited(1, &limits).await;
    let _running = build(&proxy, "running").await;
    seen(&daemon, 1);
    let _waiting = [build(&proxy, "w1").await, build(&proxy, "w2").await];
    queued(&proxy, 2);
    let refused = |ended: Ended, words: &[&str]| {
        assert_eq!((ended.code(), ended.marker()), (Some(8), Some("queue_full")), "{ended:?}");
        let told = ended.message();
        words.iter().for_each(|word| assert!(told.contains(word), "{word} is missing in {told}"));
    };
    let words = ["2 builds of this client", "pool default", "1 of 1 slots are taken"];
    refused(build(&proxy, "w3").await.ended().await, &words);
    let _other = build_from("127.0.0.2", &proxy, "w4").await;
    queued(&proxy, 3);
    let words = ["pool default is full: 3 builds wait", "1 of 1 slots are taken"];
    refused(build_from("127.0.0.3", &proxy, "w5").await.ended().await, &words);
    assert_eq!(proxy.metric("buildkit_lb_rejected_total", &["queue_full"]), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_ends_refuses_the_builds_that_wait() {
    let (daemon, proxy) = limited(1, &[]).await;
    let running = build(&proxy, "running").await;
    seen(&daemon, 1);
    let waiting = build(&proxy, "waiting").await;
    queued(&proxy, 1);
    proxy.process.signal("TERM");
    let ended = waiting.ended().await;
    assert_eq!((ended.code(), ended.marker()), (Some(14), Some("draining")), "{ended:?}");
    daemon.finish();
    assert_eq!(running.ended().await.code(), Some(0));
    assert_eq!(daemon.seen("Control/Solve").len(), 1, "no daemon has seen it");
}

/// A way to a daemon that can be closed: open connections stay and carry nothing more, and no new one is accepted.
struct Door {
    port: u16,
    to: String,
    accepting: JoinHandle<()>,
    closed: watch::Sender<bool>,
}

impl Door {
    async fn open(port: u16, to: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (target, closed) = (to.to_owned(), watch::Sender::new(false));
        let closing = closed.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((mut from, _peer)) = listener.accept().await {
                let mut to = TcpStream::connect(&target).await.expect("the daemon accepts");
                let mut closing = closing.clone();
                tokio::spawn(async move {
                    let ended = tokio::select! {
                        _ = copy_bidirectional(&mut from, &mut to) => true,
                        _ = closing.wait_for(|closed| *closed) => false,
                    };
                    if !ended {
                        pending::<()>().await;
                    }
                });
            }
        });
        Self { port, to: to.to_owned(), accepting, closed }
    }

    async fn close(self) -> (u16, String) {
        self.closed.send_replace(true);
        self.accepting.abort();
        let _ = self.accepting.await;
        (self.port, self.to)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_whose_daemon_is_gone_when_its_turn_comes_keeps_its_place() {
    let daemon = FakeDaemon::start("only").await;
    let door = Door::open(0, &daemon.socket()).await;
    let backend = daemon.behind(&format!("127.0.0.1:{}", door.port));
    let proxy = Builder::default().backend(&backend).args(&["--max-builds", "1"]).start();
    proxy.wait_ready(1, WAIT);
    let running = build(&proxy, "running").await;
    seen(&daemon, 1);
    let first = build(&proxy, "first").await;
    queued(&proxy, 1);
    let second = build(&proxy, "second").await;
    queued(&proxy, 2);
    let (port, to) = door.close().await;
    drop(running);
    eventually("the turn of the first comes, and it finds nobody", WAIT, || {
        (proxy.metric("buildkit_lb_queue_left_total", &["granted"]) >= 1.0).then_some(())
    });
    let queue = queued(&proxy, 2);
    assert_eq!([&queue[0]["ref"], &queue[1]["ref"]], [&json!("first"), &json!("second")]);
    let _door = Door::open(port, &to).await;
    assert_eq!(seen(&daemon, 2)[1], "first");
    daemon.finish();
    for solve in [first, second] {
        assert_eq!(solve.ended().await.code(), Some(0));
    }
}

#[test]
fn an_empty_fleet_is_ready_for_builds_that_may_wait() {
    let proxy = before_its_daemon(free_port(), &["--max-wait", "20m"]);
    let told = "ok\npool default: no backend is ready; builds wait up to 20m, now 0\n";
    assert_eq!(proxy.admin("GET", "/readyz"), (200, told.to_owned()));
}
