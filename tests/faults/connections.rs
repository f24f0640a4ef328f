//! Connections that end, break, stall or carry many streams.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::Reason;

use crate::{
    CALLS, WAIT, one, proxy,
    support::{
        eventually,
        fake_daemon::{FakeDaemon, send},
        raw_client::RawClient,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_goaway_streams_go_on_and_new_calls_reach_the_same_daemon() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    let solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await.answered().await.expect("headers");
    let daemon =
        fleet.iter().find(|daemon| !daemon.seen("Control/Solve").is_empty()).expect("bound");
    let number = daemon.seen("Control/Solve")[0].connection;
    daemon.go_away(number);
    // Until the proxy has read the GOAWAY, calls go over the old connection, or the GOAWAY leaves them out.
    tokio::time::timeout(WAIT, async {
        loop {
            let ended = client.bridge("Evaluate", "r").await.ended().await;
            if ended.reset == Some(Reason::REFUSED_STREAM) {
                continue;
            }
            assert_eq!(ended.code(), Some(0), "{ended:?}");
            let evaluated = daemon.seen("LLBBridge/Evaluate").pop().expect("a call");
            if evaluated.connection != number {
                break;
            }
        }
    })
    .await
    .expect("the old connection takes no more streams");
    daemon.finish();
    assert_eq!(solve.ended().await.code(), Some(0));
    assert_eq!(status.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_unavailable_and_names_the_daemon() {
    let (daemon, proxy, client) = one().await;
    let solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await.answered().await.expect("headers");
    eventually("the Solve arrives", WAIT, || {
        (daemon.seen("Control/Solve").len() == 1).then_some(())
    });
    daemon.cut(daemon.seen("Control/Solve")[0].connection);
    for ended in [solve.ended().await, status.ended().await] {
        assert_eq!((ended.code(), ended.marker()), (Some(14), Some("backend_lost")), "{ended:?}");
        assert!(ended.message().contains("backend only was lost"), "{ended:?}");
    }
    eventually("it is counted", WAIT, || {
        (proxy.metric("buildkit_lb_builds_total", &["only", "Unavailable"]) == 1.0).then_some(())
    });
    // Nothing was sent twice.
    assert_eq!(daemon.seen("Control/Solve").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_holds_up_nobody_else_and_no_memory() {
    const PIECE: usize = 32 << 10;
    let (daemon, _proxy, client) = one().await;
    let from_daemon = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&from_daemon);
    daemon.on("Control/Session", move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            // The daemon sends without end and reads nothing.
            let mut out = stream.headers();
            while send(&mut out, Bytes::from(vec![7; PIECE])).await.is_ok() {
                counter.fetch_add(PIECE, Ordering::Relaxed);
            }
        }
    });
    let solve = client.solve("r", "s").await;
    let mut stuck = client.session("s").await.answered().await.expect("headers");
    // The client reads nothing either, and sends as much as its windows allow.
    let mut sent = 0;
    let upload = async {
        while send(&mut stuck.upload, Bytes::from(vec![1; PIECE])).await.is_ok() {
            sent += PIECE;
        }
    };
    let blocked = tokio::time::timeout(Duration::from_secs(2), upload).await;
    assert!(blocked.is_err(), "back-pressure must reach the sender");
    assert!(sent < 8 << 20, "{sent} bytes were taken from a client that nobody reads");
    for _ in 0..50 {
        let ended = client.bridge("Ping", "r").await.ended().await;
        assert_eq!(ended.code(), Some(0), "the build's other calls go on");
    }
    // Bytes that have left one side and have not reached the other are in the proxy, or in sockets.
    let taken = from_daemon.load(Ordering::Relaxed);
    assert!(taken < 8 << 20, "{taken} bytes were taken from a daemon whose client reads nothing");
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_build_has_one_upstream_connection_of_its_own() {
    let (daemon, proxy, client) = one().await;
    let other = RawClient::connect(&proxy.socket()).await;
    let mut open = Vec::new();
    for build in ["a", "b"] {
        let client = if build == "a" { &client } else { &other };
        open.push(client.solve(build, build).await);
        open.push(client.session(build).await);
        open.push(client.by_ref("Status", build).await);
        assert_eq!(client.bridge("Ping", build).await.ended().await.code(), Some(0));
    }
    let all = |method: &&str| {
        daemon.seen(method).iter().filter(|seen| !seen.id().is_empty()).count() == 2
    };
    eventually("all arrive", WAIT, || (CALLS.iter().all(all)).then_some(()));
    let connections = |method: &str| -> HashMap<_, _> {
        daemon.seen(method).iter().map(|seen| (seen.id(), seen.connection)).collect()
    };
    let solves = connections("Control/Solve");
    assert_ne!(solves["a"], solves["b"]);
    for method in CALLS {
        assert_eq!(connections(method), solves, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_share_a_connection() {
    let (daemon, _proxy, client) = one().await;
    // The client learns the limit from the proxy's SETTINGS.
    assert_eq!(client.control("Info").await.ended().await.code(), Some(0));
    let mut open = Vec::new();
    for build in 0..1000 {
        let id = build.to_string();
        open.push(client.solve(&id, &id).await);
    }
    eventually("all arrive", WAIT, || (daemon.seen("Control/Solve").len() == 1000).then_some(()));
    daemon.finish();
    for call in open {
        let ended = call.ended().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn short_builds_leave_no_memory_behind() {
    let (daemon, proxy, client) = one().await;
    daemon.finish();
    let builds = |from: usize, count: usize| {
        let client = client.clone();
        async move {
            for build in from..from + count {
                let id = format!("short-build-number-{build}");
                // A Solve with a key of its own does not wait for the shared key of its Session.
                let attrs = [("filename", "x"), ("buildkit-lb-key", "x")];
                let call = client.solve_with(&id, &id, &attrs, &[]).await;
                assert_eq!(call.ended().await.code(), Some(0));
            }
        }
    };
    builds(0, 3000).await;
    let (descriptors, before) = (proxy.process.descriptors(), proxy.process.memory_kib("VmRSS"));
    builds(3000, 3000).await;
    eventually("nothing of them is open", WAIT, || {
        let gauges = ["builds_active", "sessions_active", "parked_streams"];
        let open = |gauge: &&str| proxy.metric(&format!("buildkit_lb_{gauge}"), &[]);
        (gauges.iter().map(open).sum::<f64>() == 0.0 && proxy.process.descriptors() <= descriptors)
            .then_some(())
    });
    // The proxy remembers some 500 bytes of a build. If each connection stayed, they would take 25 KiB each and 75 MiB
    // together.
    let grown = proxy.process.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 16 << 10, "3000 builds left {grown} KiB");
}
