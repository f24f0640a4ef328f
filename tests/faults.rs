//! Faults that a relay meets, one at a time: the relay splits, reorders, hides or invents nothing.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use buildkit_lb::wire::{
    self,
    control::{BuildHistoryRequest, BytesMessage},
};
use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue};
use serde_json::json;
use support::{
    eventually,
    fake_daemon::{FakeDaemon, Stream, head, send, trailers},
    frames::PREFACE,
    proxy::{Builder, Proxy},
    raw_client::{Call, RawClient},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

const EMPTY: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);

/// The longest time that anything expected may take, also on a busy machine.
const WAIT: Duration = Duration::from_secs(20);

/// The calls of every build.
const CALLS: [&str; 4] = ["Control/Session", "Control/Solve", "Control/Status", "LLBBridge/Ping"];

fn proxy(fleet: &[FakeDaemon]) -> Proxy {
    let builder =
        fleet.iter().fold(Builder::default(), |builder, daemon| builder.backend(&daemon.backend()));
    builder.policy("random").start()
}

async fn one() -> (FakeDaemon, Proxy, RawClient) {
    let daemon = FakeDaemon::start("only").await;
    let proxy = proxy(std::slice::from_ref(&daemon));
    let client = RawClient::connect(&proxy.socket()).await;
    (daemon, proxy, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailers_only_answer_stays_one_and_gains_nothing() {
    let (daemon, _proxy, client) = one().await;
    daemon.on("Control/Info", |mut stream| async move {
        let mut response = head();
        response.headers_mut().extend(trailers(5, "a%20daemon's words"));
        response.headers_mut().insert("x-bin", HeaderValue::from_static("AAEC/+"));
        let _ = stream.respond.send_response(response, true);
    });
    let answered = client.control("Info").await.answered().await.expect("headers");
    assert!(answered.body.is_end_stream(), "headers must end the stream");
    let mut names: Vec<_> = answered.headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["content-type", "grpc-message", "grpc-status", "x-bin"]);
    assert_eq!(answered.headers["x-bin"], "AAEC/+");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_metadata_and_trailers_pass_byte_for_byte() {
    let (daemon, _proxy, client) = one().await;
    for len in [100 << 10, 1 << 20] {
        let details: String = (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        let metadata = &details[..48 << 10];
        let sent = details.clone();
        daemon.on("Control/Info", move |mut stream| {
            let sent = sent.clone();
            async move {
                assert_eq!(stream.head.headers["x-large"], sent[..48 << 10]);
                let mut out = stream.headers();
                let mut trailers = trailers(2, "");
                trailers.insert("grpc-status-details-bin", sent.parse().expect("a value"));
                let _ = out.send_trailers(trailers);
            }
        });
        let path = "/moby.buildkit.v1.Control/Info";
        let ended = client.send(path, &[("x-large", metadata)], EMPTY).await.ended().await;
        assert_eq!(ended.code(), Some(2), "{ended:?}");
        assert_eq!(ended.trailers["grpc-status-details-bin"], details);
    }
}

/// Answers `Health/Check` with error details of `len` bytes, in trailers after headers or in a response of trailers
/// only.
fn answer_with_details(daemon: &FakeDaemon, len: usize, alone: bool) {
    daemon.on("Health/Check", move |mut stream| async move {
        stream.read().await;
        let details = HeaderValue::try_from("x".repeat(len)).expect("a value");
        let mut trailers = trailers(2, "");
        trailers.insert("grpc-status-details-bin", details);
        if alone {
            let mut response = head();
            response.headers_mut().extend(trailers);
            let _ = stream.respond.send_response(response, true);
        } else {
            let _ = stream.headers().send_trailers(trailers);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn error_details_above_the_limit_fail_their_call_alone_and_tell_their_size() {
    let (daemon, proxy, client) = one().await;
    let solve = client.solve("r", "s").await;
    let check = async || {
        let call = client.send("/grpc.health.v1.Health/Check", &[], EMPTY).await;
        call.ended().await
    };
    for alone in [false, true] {
        for len in [4 << 20, 8 << 20] {
            answer_with_details(&daemon, len, alone);
            let ended = check().await;
            let told = (ended.code(), ended.marker());
            assert_eq!(told, (Some(8), Some("answer_too_large")), "{len}, alone: {alone}");
            let size = ended.message().split(' ').find_map(|word| word.parse::<usize>().ok());
            assert!(size.is_some_and(|size| (len..len + 1_000).contains(&size)), "{ended:?}");
        }
        answer_with_details(&daemon, (4 << 20) - 1_000, alone);
        let ended = check().await;
        assert_eq!((ended.code(), ended.marker()), (Some(2), None), "alone: {alone}");
    }
    assert_eq!(client.bridge("Ping", "r").await.ended().await.code(), Some(0));
    assert_eq!(proxy.metric("buildkit_lb_upstream_errors_total", &[]), 0.0);
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_metadata_stays_repeated() {
    let (daemon, _proxy, client) = one().await;
    let method = "x-docker-expose-session-grpc-method";
    let headers = [
        ("x-docker-expose-session-uuid", "s"),
        (method, "/a/A"),
        (method, "/b/B"),
        (method, "/c/C"),
        ("x-docker-expose-session-sharedkey", ""),
        ("x-any-bin", "AP8, x"),
    ];
    let solve = client.solve("r", "s").await;
    let call = client.call("/moby.buildkit.v1.Control/Session", &headers).await;
    let answered = call.answered().await.expect("headers");
    let seen = &daemon.seen("Control/Session")[0].headers;
    let methods: Vec<_> = seen.get_all(method).iter().collect();
    assert_eq!(methods, ["/a/A", "/b/B", "/c/C"]);
    assert_eq!(seen["x-docker-expose-session-sharedkey"], "");
    assert_eq!(seen["x-any-bin"], "AP8, x");
    assert_eq!(seen["te"], "trailers");
    assert!(!seen.contains_key("connection") && !seen.contains_key("via"));
    drop((answered, solve));
}

/// Resets a stream: at once, or after headers and a message, once the client has `read` them.
async fn reset(mut stream: Stream, reason: Reason, read: Option<Arc<Notify>>) {
    let Some(read) = read else { return stream.respond.send_reset(reason) };
    let mut out = stream.headers();
    let _ = send(&mut out, EMPTY).await;
    read.notified().await;
    out.send_reset(reason);
}

/// How many bytes of a call came before its reset, and the reason of the reset.
async fn reset_of(call: Call, read: Option<Arc<Notify>>) -> (usize, Option<Reason>) {
    let Some(read) = read else {
        let ended = call.ended().await;
        return (ended.body.len(), ended.reset);
    };
    let mut answered = call.answered().await.expect("headers");
    let first = answered.body.data().await.expect("a message").expect("no reset yet");
    read.notify_one();
    let ended = answered.ended().await;
    (first.len() + ended.body.len(), ended.reset)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemons_reset_has_the_same_reason_for_the_client() {
    let (daemon, _proxy, client) = one().await;
    let reasons =
        [Reason::INTERNAL_ERROR, Reason::REFUSED_STREAM, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM];
    for reason in reasons {
        for after_headers in [false, true] {
            let read = after_headers.then(|| Arc::new(Notify::new()));
            let told = read.clone();
            daemon.on("Control/Info", move |stream| reset(stream, reason, told.clone()));
            let (_bytes, told) = reset_of(client.control("Info").await, read).await;
            assert_eq!(told, Some(reason), "after headers: {after_headers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_cancel_reaches_the_daemon_at_once() {
    let (daemon, _proxy, client) = one().await;
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    for method in ["Control/Solve", "Control/Session", "Control/Status"] {
        let told = told.clone();
        daemon.on(method, move |mut stream| {
            let told = told.clone();
            async move {
                let mut out = stream.headers();
                let reason = std::future::poll_fn(|cx| out.poll_reset(cx)).await;
                let _ = told.send((method, reason.ok()));
            }
        });
    }
    let calls = [
        client.solve("r", "s").await,
        client.session("s").await,
        client.by_ref("Status", "r").await,
    ];
    for call in calls {
        let mut answered = call.answered().await.expect("headers");
        answered.upload.send_reset(Reason::CANCEL);
    }
    let mut cancelled = HashSet::new();
    for _ in 0..3 {
        let tell = tokio::time::timeout(WAIT, tells.recv()).await;
        let (method, reason) = tell.expect("in time").expect("a report");
        assert_eq!(reason, Some(Reason::CANCEL), "{method}");
        cancelled.insert(method);
    }
    assert_eq!(cancelled.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_close_is_passed_on_while_the_other_half_goes_on() {
    let (daemon, _proxy, client) = one().await;
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    daemon.on("Control/Session", move |mut stream| {
        let told = told.clone();
        async move {
            let mut out = stream.headers();
            let _ = told.send(stream.read().await);
            // The client has half-closed; the daemon still has something to send.
            for _ in 0..3 {
                let _ = send(&mut out, EMPTY).await;
            }
            let _ = out.send_trailers(trailers(0, ""));
        }
    });
    let solve = client.solve("r", "s").await;
    let mut answered = client.session("s").await.answered().await.expect("headers");
    send(&mut answered.upload, EMPTY).await.expect("sent");
    answered.upload.send_data(Bytes::new(), true).expect("half-closed");
    let read = tokio::time::timeout(WAIT, tells.recv()).await;
    assert_eq!(read.expect("in time"), Some(EMPTY));
    let ended = answered.ended().await;
    assert_eq!((ended.body.len(), ended.code()), (15, Some(0)));
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_before_the_first_message() {
    let (daemon, _proxy, client) = one().await;
    daemon.on("Control/Status", |mut stream| async move {
        let mut response = head();
        let now = HeaderValue::from_static("2026-01-01T00:00:00Z");
        response.headers_mut().insert("buildkit-current-timestamp", now);
        let _out = stream.respond.send_response(response, false);
        std::future::pending::<()>().await;
    });
    let solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await.answered();
    let answered = tokio::time::timeout(WAIT, status).await.expect("in time");
    let headers = answered.expect("headers").headers;
    assert!(headers.contains_key("buildkit-current-timestamp"));
    drop(solve);
}

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

/// How many calls of a build the proxy has received.
fn received(proxy: &Proxy) -> f64 {
    let of = |call: &str| {
        let (_service, method) = call.split_once('/').expect("a service");
        proxy.metric("grpc_server_started_total", &[&format!("grpc_method=\"{method}\"")])
    };
    CALLS.iter().map(|call| of(call)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_build_meet_in_any_order_and_over_any_connection() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for (number, order) in
        permutations(&["session", "solve", "status", "ping"]).into_iter().enumerate()
    {
        let (build, session) = (format!("r{number}"), format!("s{number}"));
        let mut calls = Vec::new();
        for call in order {
            let client = RawClient::connect(&proxy.socket()).await;
            calls.push(match call {
                "session" => client.session(&session).await,
                "solve" => client.solve(&build, &session).await,
                "status" => client.by_ref("Status", &build).await,
                _ => client.bridge("Ping", &build).await,
            });
            let sent = number * CALLS.len() + calls.len();
            eventually("the call is at the proxy", WAIT, || {
                (received(&proxy) == sent as f64).then_some(())
            });
        }
        let all_at = |daemon: &FakeDaemon| {
            CALLS.iter().all(|call| {
                let id = if *call == "Control/Session" { &session } else { &build };
                daemon.seen(call).iter().any(|seen| seen.id() == *id)
            })
        };
        eventually("all its calls are at one daemon", WAIT, || {
            (fleet.iter().any(all_at)).then_some(())
        });
        drop(calls);
    }
    for call in CALLS {
        let seen: usize = fleet.iter().map(|daemon| daemon.seen(call).len()).sum();
        assert_eq!(seen, 24, "each {call} was sent once, to one daemon");
    }
}

fn permutations<'a>(items: &[&'a str]) -> Vec<Vec<&'a str>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |index: usize| {
        let mut rest = items.to_vec();
        let first = rest.remove(index);
        permutations(&rest).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (0..items.len()).flat_map(with_first).collect()
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
async fn a_shared_session_brings_its_targets_together() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for round in 0..10 {
        let shared = format!("shared{round}");
        let attrs = [("local-sessionid:context", shared.as_str())];
        let mut calls = Vec::new();
        for target in 0..4 {
            let client = RawClient::connect(&proxy.socket()).await;
            let id = format!("{round}-{target}");
            if target == 2 {
                calls.push(client.session(&shared).await);
            }
            calls.push(client.solve_with(&id, &id, &attrs, &[]).await);
        }
        let daemons = || fleet.iter().map(|daemon| daemon.seen("Control/Solve").len());
        eventually("the Solves arrive", WAIT, || {
            (daemons().sum::<usize>() == 4 * (round + 1)).then_some(())
        });
        assert!(
            daemons().all(|solves| solves % 4 == 0),
            "split: {:?}",
            daemons().collect::<Vec<_>>()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_target_follows_its_trace_even_after_its_input_has_ended() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    fleet.iter().for_each(FakeDaemon::finish);
    for round in 0..10 {
        let trace = format!("00-{:032x}-0000000000000001-01", round + 1);
        let headers = [("traceparent", trace.as_str())];
        for (target, attr) in
            [("a", ("filename", "Dockerfile")), ("b", ("context:base", "input:0-a"))]
        {
            let client = RawClient::connect(&proxy.socket()).await;
            let id = format!("{round}{target}");
            let ended = client.solve_with(&id, &id, &[attr], &headers).await.ended().await;
            assert_eq!(ended.code(), Some(0));
        }
        let solves: Vec<_> =
            fleet.iter().map(|daemon| daemon.seen("Control/Solve").len()).collect();
        assert!(solves.iter().all(|solves| solves % 2 == 0), "split: {solves:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_only_share_a_pipelines_trace_are_spread() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let headers = [("traceparent", "00-0000000000000000000000000000000f-0000000000000001-01")];
    let mut open = Vec::new();
    for build in 0..30 {
        let client = RawClient::connect(&proxy.socket()).await;
        let id = build.to_string();
        open.push(client.solve_with(&id, &id, &[], &headers).await);
    }
    let solves = || fleet.iter().map(|daemon| daemon.seen("Control/Solve").len());
    eventually("the Solves arrive", WAIT, || (solves().sum::<usize>() == 30).then_some(()));
    assert!(solves().all(|solves| solves > 0), "{:?}", solves().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn later_calls_of_an_ended_build_reach_its_daemon() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    fleet.iter().for_each(FakeDaemon::finish);
    for round in 0..6 {
        let id = format!("ended{round}");
        let client = RawClient::connect(&proxy.socket()).await;
        assert_eq!(client.solve(&id, &id).await.ended().await.code(), Some(0));
        let home = fleet.iter().position(|daemon| {
            !daemon.seen("Control/Solve").is_empty() && daemon.seen("Control/Status").is_empty()
                || daemon.seen("Control/Solve").len() > daemon.seen("Control/Status").len()
        });
        let home = &fleet[home.expect("one has it")];
        for method in ["Status", "UpdateBuildHistory"] {
            let later = RawClient::connect(&proxy.socket()).await;
            let before = home.seen(method).len();
            assert_eq!(later.by_ref(method, &id).await.ended().await.code(), Some(0));
            assert_eq!(home.seen(method).len(), before + 1, "{method}");
        }
        assert_eq!(client.bridge("Evaluate", &id).await.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_solve_is_late_is_served_and_the_solve_follows() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    let session = client.session("late").await.answered().await.expect("headers, unasked");
    let other = RawClient::connect(&proxy.socket()).await;
    let solve = other.solve("r", "late").await;
    let both = |daemon: &FakeDaemon| {
        daemon.seen("Control/Session").len() == 1 && daemon.seen("Control/Solve").len() == 1
    };
    eventually("both are on one daemon", WAIT, || (fleet.iter().any(both)).then_some(()));
    drop((session, solve));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_solve_ends_its_siblings_so_that_its_error_is_the_one_shown() {
    let port = support::free_port();
    let gone = format!("gone=tcp://127.0.0.1:{port}");
    let proxy = Builder::default().backend(&gone).args(&["--max-wait", "0s"]).start();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    let status = client.by_ref("Status", "r").await;
    let ping = client.bridge("Ping", "r").await;
    let solve = client.solve("r", "s").await.ended().await;
    assert_eq!((solve.code(), solve.marker()), (Some(14), Some("no_backend")));
    assert!(solve.message().contains("backend gone"), "{}", solve.message());
    assert_eq!(ping.ended().await.code(), Some(14));
    assert_eq!(status.ended().await.code(), Some(0), "an error here would hide the Solve's");
    session.upload.send_data(Bytes::new(), true).expect("half-closed");
    assert_eq!(session.ended().await.code(), Some(0));
    let late = client.by_ref("Status", "r").await.ended().await;
    assert_eq!(late.code(), Some(0), "one that comes later is ended too");
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
async fn an_unknown_method_of_a_known_service_follows_its_ids() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    let solve = client.solve("r", "s").await;
    let solved = || fleet.iter().position(|daemon| !daemon.seen("Control/Solve").is_empty());
    eventually("the Solve arrives", WAIT, || (solved().is_some()).then_some(()));
    let home = &fleet[solved().expect("bound")];
    for _ in 0..5 {
        let other = RawClient::connect(&proxy.socket()).await;
        let headers = [("buildkit-controlapi-buildid", "r")];
        let path = "/moby.buildkit.v1.Control/FromTheFuture";
        assert_eq!(other.send(path, &headers, EMPTY).await.ended().await.code(), Some(0));
        assert_eq!(other.bridge("AlsoNew", "r").await.ended().await.code(), Some(0));
        let headers = [("x-docker-expose-session-uuid", "s")];
        let path = "/moby.buildkit.v1.Control/NewSessionCall";
        assert_eq!(other.send(path, &headers, EMPTY).await.ended().await.code(), Some(0));
    }
    for method in ["FromTheFuture", "AlsoNew", "NewSessionCall"] {
        assert_eq!(home.seen(method).len(), 5, "{method}");
    }
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_the_proxy_does_not_know_go_through() {
    let (daemon, _proxy, client) = one().await;
    let health = client.send("/grpc.health.v1.Health/Check", &[], EMPTY).await.ended().await;
    assert_eq!(health.code(), Some(0));
    daemon.on("/x.Y/Z", |mut stream| async move {
        let mut response = head();
        response.headers_mut().extend(trailers(12, "unknown service x.Y"));
        let _ = stream.respond.send_response(response, true);
    });
    let unknown = client.send("/x.Y/Z", &[], EMPTY).await.ended().await;
    assert_eq!((unknown.code(), unknown.message().as_str()), (Some(12), "unknown service x.Y"));
    assert_eq!(unknown.trailers, HeaderMap::new());
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

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_a_build_is_reset_as_the_daemon_resets_it() {
    let (daemon, proxy, _client) = one().await;
    let reasons = [
        Reason::PROTOCOL_ERROR,
        Reason::INTERNAL_ERROR,
        Reason::FLOW_CONTROL_ERROR,
        Reason::REFUSED_STREAM,
        Reason::CANCEL,
        Reason::ENHANCE_YOUR_CALM,
        Reason::INADEQUATE_SECURITY,
        Reason::from(0xbad),
    ];
    for (round, reason) in reasons.into_iter().enumerate() {
        for after_headers in [false, true] {
            let id = format!("{round}-{after_headers}");
            let methods = ["Control/Session", "Control/Status", "LLBBridge/Ping"];
            let reads = methods.map(|method| {
                let read = after_headers.then(|| Arc::new(Notify::new()));
                let told = read.clone();
                daemon.on(method, move |stream| reset(stream, reason, told.clone()));
                read
            });
            let client = RawClient::connect(&proxy.socket()).await;
            let solve = client.solve(&id, &id).await;
            let calls = [
                client.session(&id).await,
                client.by_ref("Status", &id).await,
                client.bridge("Ping", &id).await,
            ];
            for (call, read) in calls.into_iter().zip(reads) {
                let expected = (if after_headers { 5 } else { 0 }, Some(reason));
                assert_eq!(reset_of(call, read).await, expected, "after headers: {after_headers}");
            }
            drop(solve);
        }
    }
    // No call was made twice.
    for method in ["Control/Session", "Control/Status", "LLBBridge/Ping"] {
        assert_eq!(daemon.seen(method).len(), reasons.len() * 2, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_is_passed_on_before_any_answer_too() {
    let (daemon, _proxy, client) = one().await;
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let methods = ["Control/Solve", "Control/Session", "Control/Status", "LLBBridge/Evaluate"];
    for method in methods {
        let told = told.clone();
        daemon.on(method, move |mut stream| {
            let told = told.clone();
            async move {
                let reason = std::future::poll_fn(|cx| stream.respond.poll_reset(cx)).await;
                let _ = told.send((method, reason.ok()));
            }
        });
    }
    let mut calls = [
        client.solve("r", "s").await,
        client.session("s").await,
        client.by_ref("Status", "r").await,
        client.bridge("Evaluate", "r").await,
    ];
    eventually("all arrive", WAIT, || {
        (methods.iter().all(|method| daemon.seen(method).len() == 1)).then_some(())
    });
    for call in &mut calls {
        call.upload.send_reset(Reason::CANCEL);
    }
    for _ in methods {
        let tell = tokio::time::timeout(WAIT, tells.recv()).await;
        let (method, reason) = tell.expect("in time").expect("a report");
        assert_eq!(reason, Some(Reason::CANCEL), "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_call_whose_client_goes_reaches_no_daemon() {
    let (daemon, proxy, client) = one().await;
    let parked = || proxy.metric("buildkit_lb_parked_streams", &[]);
    let mut calls = [
        client.session("s").await,
        client.by_ref("Status", "r").await,
        client.bridge("Ping", "r").await,
    ];
    eventually("all are parked", WAIT, || (parked() == 3.0).then_some(()));
    for call in &mut calls {
        call.upload.send_reset(Reason::CANCEL);
    }
    eventually("none is", WAIT, || (parked() == 0.0).then_some(()));
    let solve = client.solve("r", "s").await;
    // Anything that the proxy sent before would be on the same connection as the Solve and this call.
    assert_eq!(client.bridge("Evaluate", "r").await.ended().await.code(), Some(0));
    for method in ["Control/Session", "Control/Status", "LLBBridge/Ping"] {
        assert!(daemon.seen(method).is_empty(), "{method}");
    }
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_end_a_session_first() {
    let (daemon, proxy, client) = one().await;
    daemon.on("Control/Session", |mut stream| async move {
        let mut out = stream.headers();
        let _ = send(&mut out, EMPTY).await;
        let _ = out.send_trailers(trailers(0, ""));
    });
    let solve = client.solve("r", "s").await;
    let session = client.session("s").await.ended();
    let ended = tokio::time::timeout(WAIT, session).await.expect("in time");
    assert_eq!((ended.code(), ended.body.len(), ended.reset), (Some(0), 5, None));
    eventually("it is counted as well ended", WAIT, || {
        (proxy.metric("buildkit_lb_sessions_total", &["result=\"ok\""]) == 1.0).then_some(())
    });
    assert_eq!(client.bridge("Ping", "r").await.ended().await.code(), Some(0));
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_carries_every_byte_in_order_both_ways() {
    let (_daemon, _proxy, client) = one().await;
    let solve = client.solve("r", "s").await;
    let session = client.session("s").await.answered().await.expect("headers");
    let sent: Vec<u8> = (0..16_u32 << 20).map(|at| (at.wrapping_mul(at) >> 9) as u8).collect();
    let (mut upload, mut body) = (session.upload, session.body);
    let outgoing = Bytes::from(sent.clone());
    let sender = tokio::spawn(async move {
        // Pieces of every size, so that they end anywhere in a frame.
        let mut rest = outgoing;
        for len in [1, 4095, 77_777, 300_001].into_iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let piece = rest.split_to(len.min(rest.len()));
            send(&mut upload, piece).await.expect("sent");
        }
        upload.send_data(Bytes::new(), true).expect("half-closed");
    });
    let mut received = Vec::with_capacity(sent.len());
    while let Some(data) = body.data().await {
        let data = data.expect("no reset");
        received.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    sender.await.expect("all is sent");
    assert!(received == sent, "{} of {} bytes, or other ones", received.len(), sent.len());
    let trailers = body.trailers().await.expect("no reset").expect("trailers");
    assert_eq!(trailers["grpc-status"], "0");
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_an_ended_build_is_asked_where_it_ran() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    fleet.iter().for_each(FakeDaemon::finish);
    for round in 0..6 {
        let id = format!("ended{round}");
        let client = RawClient::connect(&proxy.socket()).await;
        assert_eq!(client.solve(&id, &id).await.ended().await.code(), Some(0));
        let later = RawClient::connect(&proxy.socket()).await;
        let path = "/moby.buildkit.v1.Control/ListenBuildHistory";
        let request = BuildHistoryRequest {
            r#ref: id.clone().into(),
            early_exit: true,
            ..Default::default()
        };
        let ended = later.send(path, &[], wire::encode(&request)).await.ended().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    for daemon in &fleet {
        let counts =
            ["Control/Solve", "ListenBuildHistory"].map(|method| daemon.seen(method).len());
        assert_eq!(counts[0], counts[1], "{}", daemon.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_needs_sessions_of_two_daemons_is_told_of() {
    let fleet = FakeDaemon::fleet(2).await;
    let proxy = proxy(&fleet);
    let mut open = Vec::new();
    for (own, other) in [(0, 1), (1, 0)] {
        let cordon = format!("/backends/{}/cordon", fleet[other].name);
        assert_eq!(proxy.control("POST", &cordon).0, 200);
        let client = RawClient::connect(&proxy.socket()).await;
        let id = format!("on-{own}");
        open.push((client.solve(&id, &id).await, client.session(&id).await, client));
        eventually("both arrive", WAIT, || {
            (fleet[own].seen("Control/Session").len() == 1).then_some(())
        });
        assert_eq!(proxy.control("DELETE", &cordon).0, 200);
    }
    let client = RawClient::connect(&proxy.socket()).await;
    let attrs = [("local-sessionid:a", "on-0"), ("local-sessionid:b", "on-1")];
    let alone = client.solve_with("alone", "own", &attrs[..1], &[]).await;
    let both = client.solve_with("both", "other", &attrs, &[]).await;
    eventually("both builds arrive", WAIT, || {
        (fleet[0].seen("Control/Solve").len() == 3).then_some(())
    });
    let warnings = proxy.records("build needs sessions on two backends");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let told = ["ref", "backend", "key", "elsewhere"].map(|field| &warnings[0][field]);
    let [here, there] = [&fleet[0].name, &fleet[1].name];
    // The record shows a hash instead of a session's id; it belongs to the session whose own Solve runs there.
    let record = proxy.status()["builds"].as_array().expect("a list").clone();
    let of = |build: &str| {
        record.iter().find(|one| one["ref"] == build).expect("it runs")["session"].clone()
    };
    assert_eq!(told, [&json!("both"), &json!(here), &of("on-1"), &json!(there)]);
    assert_eq!(proxy.metric("buildkit_lb_binding_conflicts_total", &[]), 1.0);
    drop((open, alone, both));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_there_is_passed_over() {
    let fleet = FakeDaemon::fleet(1).await;
    let gone = format!("gone=tcp://127.0.0.1:{}", support::free_port());
    let proxy =
        Builder::default().backend(&fleet[0].backend()).backend(&gone).policy("random").start();
    fleet[0].finish();
    for build in 0..20 {
        let client = RawClient::connect(&proxy.socket()).await;
        let id = build.to_string();
        let ended = client.solve(&id, &id).await.ended().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    assert_eq!(fleet[0].seen("Control/Solve").len(), 20);
    eventually("a probe fails", Duration::from_secs(10), || {
        let refused = proxy.metric("buildkit_lb_upstream_errors_total", &["gone", "refused"]);
        (refused >= 1.0).then_some(())
    });
}

/// Starts ten builds at once. Each must end well, although one of two daemons is at `port`.
async fn ten_builds_beside(port: u16) {
    let fleet = FakeDaemon::fleet(1).await;
    let proxy = Builder::default()
        .backend(&fleet[0].backend())
        .backend(&format!("odd=tcp://127.0.0.1:{port}"))
        .policy("random")
        .start();
    fleet[0].finish();
    let mut builds = Vec::new();
    for build in 0..10 {
        let client = RawClient::connect(&proxy.socket()).await;
        let id = build.to_string();
        builds.push(client.solve(&id, &id).await);
    }
    for build in builds {
        let ended = tokio::time::timeout(Duration::from_secs(8), build.ended()).await;
        assert_eq!(ended.expect("a bounded wait").code(), Some(0));
    }
    assert_eq!(fleet[0].seen("Control/Solve").len(), 10);
    // The daemon has passed no probe, so no build had to try it.
    let took_none = ["backend=\"odd\",state=\"ready\""];
    assert_eq!(proxy.metric("buildkit_lb_backend_state", &took_none), 0.0);
    eventually("a probe fails", Duration::from_secs(20), || {
        (proxy.metric("buildkit_lb_upstream_errors_total", &["odd"]) >= 1.0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_accepts_and_says_nothing_is_passed_over() {
    // The system accepts connections for it, as for a daemon that is stopped or stuck.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    ten_builds_beside(silent.local_addr().expect("bound").port()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_closes_at_once_is_passed_over() {
    let closing = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = closing.local_addr().expect("bound").port();
    tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    ten_builds_beside(port).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_wait_for_the_preface_before_it_speaks() {
    let daemon = FakeDaemon::start("only").await;
    let polite = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let socket = polite.local_addr().expect("bound").to_string();
    let upstream = daemon.socket();
    tokio::spawn(async move {
        while let Ok((mut down, _peer)) = polite.accept().await {
            let upstream = upstream.clone();
            tokio::spawn(async move {
                let mut preface = [0; PREFACE.len()];
                down.read_exact(&mut preface).await.expect("a preface");
                let mut up = TcpStream::connect(upstream).await.expect("the daemon accepts");
                up.write_all(&preface).await.expect("sent");
                let _ = tokio::io::copy_bidirectional(&mut down, &mut up).await;
            });
        }
    });
    let proxy = Builder::default().backend(&daemon.behind(&socket)).start();
    daemon.finish();
    let client = RawClient::connect(&proxy.socket()).await;
    assert_eq!(client.solve("r", "s").await.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_served_though_its_solve_comes_after_it_was_bound_alone() {
    let fleet = FakeDaemon::fleet(3).await;
    let inner = |data: &[u8]| wire::encode(&BytesMessage { data: Bytes::copy_from_slice(data) });
    let preface = inner(PREFACE);
    for daemon in &fleet {
        let preface = preface.clone();
        daemon.on("Control/Session", move |mut stream| {
            let preface = preface.clone();
            async move {
                let mut out = stream.headers();
                send(&mut out, preface).await.expect("sent");
                while let Some(Ok(data)) = stream.body.data().await {
                    send(&mut out, data).await.expect("sent");
                }
                let _ = out.send_trailers(trailers(0, ""));
            }
        });
    }
    let proxy = proxy(&fleet);
    let mut sessions = Vec::new();
    for number in 0..6 {
        let client = RawClient::connect(&proxy.socket()).await;
        sessions.push(client.session(&number.to_string()).await);
    }
    // The proxy has begun the connections inside, and bound the sessions on their own.
    eventually("each session is on a daemon", WAIT, || {
        let seen: usize = fleet.iter().map(|d| d.seen("Control/Session").len()).sum();
        (seen == sessions.len()).then_some(())
    });
    for (number, session) in sessions.into_iter().enumerate() {
        let id = number.to_string();
        let client = RawClient::connect(&proxy.socket()).await;
        let solve = client.solve(&id, &id).await;
        let at = |daemon: &FakeDaemon, method: &str| {
            daemon.seen(method).iter().any(|seen| seen.id() == id)
        };
        // A Session that has ended by then would not draw a Solve to its daemon.
        eventually("both are on one daemon", WAIT, || {
            (fleet.iter().any(|d| at(d, "Control/Session") && at(d, "Control/Solve"))).then_some(())
        });
        let mut session = session.answered().await.expect("headers");
        send(&mut session.upload, EMPTY).await.expect("sent");
        session.upload.send_data(Bytes::new(), true).expect("half-closed");
        // The proxy has accepted the connection inside the tunnel, so it was not the client that closed it.
        let begun = inner(&[PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat());
        assert_eq!(session.ended().await.body, [begun, EMPTY].concat());
        drop(solve);
    }
}
