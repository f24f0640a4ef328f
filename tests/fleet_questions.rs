//! Questions to the whole fleet. A daemon that refuses, is silent or fails does not change what the others say, and
//! all daemons together say what a single one would have said.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::time::Duration;

use buildkit_lb::wire::{
    self,
    control::{BuildHistoryEvent, BuildHistoryRecord, BuildHistoryRequest},
};
use bytes::Bytes;
use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl, buildctl_build, run, succeed, text},
    eventually,
    fake_daemon::{FakeDaemon, Stream, head, messages, send, trailers},
    free_port,
    proxy::{Builder, Proxy},
    raw_client::{Answered, RawClient},
};

const HISTORY: &str = "/moby.buildkit.v1.Control/ListenBuildHistory";

fn proxy(fleet: &[FakeDaemon]) -> Proxy {
    let builder = fleet.iter().fold(Builder::default(), |all, one| all.backend(&one.backend()));
    let proxy = builder.start();
    proxy.wait_ready(u32::try_from(fleet.len()).expect("few"), Duration::from_secs(10));
    proxy
}

/// The refs in the history of a daemon or a fleet, the oldest first.
fn refs(addr: &str) -> Vec<String> {
    let list = succeed(buildctl(addr).args(["debug", "histories"]));
    let refs = list.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    refs.map(str::to_owned).collect()
}

fn event(build: &str, seconds: i64) -> Bytes {
    let created_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
    let record = BuildHistoryRecord { r#ref: Bytes::copy_from_slice(build.as_bytes()), created_at };
    wire::encode(&BuildHistoryEvent { r#type: 1, record: Some(record) })
}

/// Answers with `events` and OK.
async fn tell(mut stream: Stream, events: Vec<Bytes>) {
    stream.read().await;
    let mut out = stream.headers();
    let _ = send(&mut out, events.concat().into()).await;
    let _ = out.send_trailers(trailers(0, ""));
}

/// Answers with an error, before or after headers.
async fn refuse(mut stream: Stream, code: i32, message: &'static str, early: bool) {
    stream.read().await;
    if early {
        let mut response = head();
        response.headers_mut().extend(trailers(code, message));
        let _ = stream.respond.send_response(response, true);
    } else {
        let _ = stream.headers().send_trailers(trailers(code, message));
    }
}

/// Never answers.
async fn keep_silent(mut stream: Stream) {
    stream.read().await;
    let _ = std::future::poll_fn(|cx| stream.respond.poll_reset(cx)).await;
}

async fn history(proxy: &Proxy, request: BuildHistoryRequest) -> Answered {
    let client = RawClient::connect(&proxy.socket()).await;
    let call = client.send(HISTORY, &[], wire::encode(&request)).await;
    call.answered().await.expect("headers")
}

/// The refs of the events in a body.
fn told(body: &[u8]) -> Vec<String> {
    let event = |message: &Bytes| wire::decode::<BuildHistoryEvent>(message).expect("an event");
    let build = |message: &Bytes| event(message).record.expect("a record").r#ref;
    messages(body).iter().map(|one| String::from_utf8_lossy(&build(one)).into_owned()).collect()
}

#[test]
fn a_record_that_had_to_be_looked_for_is_deleted_for_good() {
    let mut fleet = Buildkitd::fleet(2);
    let direct = fleet[0].addr();
    for daemon in &fleet {
        succeed(&mut buildctl_build(&daemon.addr(), &Context::busybox("RUN true")));
    }
    let [build] = &refs(&fleet[1].addr())[..] else { panic!("one build") };
    let fresh = Proxy::in_front_of(&fleet).start();
    fresh.wait_ready(2, Duration::from_secs(10));
    succeed(buildctl(&fresh.addr()).args(["debug", "ctl", "--delete", build]));
    assert_eq!(refs(&fleet[1].addr()), [""; 0]);
    fleet[1].kill();
    fleet[1].restart();
    assert_eq!(refs(&fleet[1].addr()), [""; 0], "it is back after a restart");
    let nosuch = |addr: &str| {
        let output = run(buildctl(addr).args(["debug", "ctl", "--delete", "nosuch"]));
        (output.status.code(), text(&output))
    };
    assert_eq!(nosuch(&fresh.addr()), nosuch(&direct));
    assert_eq!(nosuch(&direct).0, Some(1));
}

#[test]
fn whoever_asks_for_a_deleted_record_is_told() {
    let fleet = Buildkitd::fleet(2);
    let [builder, other] = [(); 2].map(|()| Proxy::in_front_of(&fleet).start());
    builder.wait_ready(2, Duration::from_secs(10));
    other.wait_ready(2, Duration::from_secs(10));
    succeed(&mut buildctl_build(&builder.addr(), &Context::busybox("RUN true")));
    let [build] = &refs(&builder.addr())[..] else { panic!("one build") };
    let logs = |addr: &str| {
        let mut logs = buildctl(addr);
        let output = run(logs.args(["debug", "logs", "--trace", build]));
        (output.status.code(), text(&output))
    };
    let holder = fleet.iter().find(|daemon| daemon.histories().contains(build)).expect("one");
    // Reading a record leaves a mark in its daemon, so that a deletion only hides the record. The trace is there some
    // seconds after the build.
    eventually("the trace is read", Duration::from_secs(20), || {
        (logs(&builder.addr()).0 == Some(0)).then_some(())
    });
    succeed(buildctl(&builder.addr()).args(["debug", "ctl", "--delete", build]));
    let direct = logs(&holder.addr());
    assert!(direct.1.contains("is deleted"), "{}", direct.1);
    assert_eq!(logs(&other.addr()), direct);
}

#[test]
fn a_stopped_daemon_holds_up_one_question_and_not_the_next() {
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).start();
    proxy.wait_ready(2, Duration::from_secs(10));
    for daemon in &fleet {
        succeed(&mut buildctl_build(&daemon.addr(), &Context::busybox("RUN true")));
    }
    assert_eq!(refs(&proxy.addr()).len(), 2);
    fleet[1].process().signal("STOP");
    let left_out = || proxy.records("backend left out of answer").len();
    let first = refs(&fleet[0].addr());
    for _ in 0..4 {
        assert_eq!(refs(&proxy.addr()), first);
    }
    assert_eq!(left_out(), 1, "it is asked once");
    fleet[1].process().signal("CONT");
    eventually("it is asked again", Duration::from_secs(30), || {
        (refs(&proxy.addr()).len() == 2).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_all_daemons_refuse_is_refused() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for early in [true, false] {
        for daemon in &fleet {
            daemon.on("ListenBuildHistory", move |stream| refuse(stream, 12, "unknown", early));
        }
        for early_exit in [true, false] {
            for limit in [0, 5] {
                let request = BuildHistoryRequest { early_exit, limit, ..Default::default() };
                let ended = history(&proxy, request).await.ended().await;
                assert_eq!((ended.code(), &*ended.message()), (Some(12), "unknown"), "{ended:?}");
                assert_eq!(ended.headers.get("grpc-status"), None, "{ended:?}");
            }
        }
    }
    // One daemon that answers is enough.
    fleet[1].on("ListenBuildHistory", |stream| tell(stream, vec![event("one", 1)]));
    let request = BuildHistoryRequest { early_exit: true, ..Default::default() };
    let ended = history(&proxy, request).await.ended().await;
    assert_eq!((ended.code(), told(&ended.body)), (Some(0), vec!["one".to_owned()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_refusal_of_the_daemon_that_knows_a_build_ends_the_wait_for_the_others() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for daemon in &fleet {
        daemon.on("ListenBuildHistory", |mut stream| async move {
            stream.read().await;
            let mut out = stream.headers();
            let _ = std::future::poll_fn(|cx| out.poll_reset(cx)).await;
        });
    }
    fleet[2].on("ListenBuildHistory", |stream| refuse(stream, 2, "ref r is deleted", false));
    let request = BuildHistoryRequest { r#ref: "r".into(), ..Default::default() };
    let ended = history(&proxy, request).await.ended().await;
    assert_eq!((ended.code(), &*ended.message()), (Some(2), "ref r is deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_records_of_all_daemons_come_in_one_order() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for (index, daemon) in fleet.iter().enumerate() {
        let at = |step: i64| 100 - step * 3 - i64::try_from(index).expect("small");
        let events = (0..10).map(|step| event(&format!("b{}", at(step)), at(step))).collect();
        let events: Vec<Bytes> = events;
        daemon.on("ListenBuildHistory", move |stream| tell(stream, events.clone()));
    }
    let request = BuildHistoryRequest { early_exit: true, limit: 10, ..Default::default() };
    let ended = history(&proxy, request).await.ended().await;
    let newest: Vec<_> = (91..=100).rev().map(|at| format!("b{at}")).collect();
    assert_eq!((ended.code(), told(&ended.body)), (Some(0), newest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_daemon_that_joins_hides_no_later_one_from_a_listener() {
    let first = FakeDaemon::start("a").await;
    let ports = [free_port(), free_port()];
    let at = |name: &str, port: u16| format!("{name}=tcp://127.0.0.1:{port}");
    let proxy = Builder::default()
        .backend(&first.backend())
        .backend(&at("b", ports[0]))
        .backend(&at("c", ports[1]))
        .start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let listen = |mut stream: Stream, events: Vec<Bytes>| async move {
        stream.read().await;
        let mut out = stream.headers();
        let _ = send(&mut out, events.concat().into()).await;
        let _ = std::future::poll_fn(|cx| out.poll_reset(cx)).await;
    };
    first.on("ListenBuildHistory", move |stream| listen(stream, vec![event("from-a", 1)]));
    let mut listener = history(&proxy, BuildHistoryRequest::default()).await;
    let silent = FakeDaemon::start_at("b", ports[0]).await;
    silent.on("ListenBuildHistory", keep_silent);
    let late = FakeDaemon::start_at("c", ports[1]).await;
    late.on("ListenBuildHistory", move |stream| listen(stream, vec![event("from-c", 2)]));
    let mut seen = Vec::new();
    let both = async {
        while told(&seen).len() < 2 {
            let data = listener.body.data().await.expect("more").expect("no reset");
            let _ = listener.body.flow_control().release_capacity(data.len());
            seen.extend_from_slice(&data);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("the events of both");
    assert_eq!(told(&seen), ["from-a", "from-c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_ends_with_the_first_failure_and_has_clean_headers() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    for daemon in &fleet {
        daemon.on("Control/Prune", |stream| refuse(stream, 0, "stale", true));
    }
    let ended = client.control("Prune").await.ended().await;
    assert_eq!((ended.code(), &*ended.message()), (Some(0), ""), "{ended:?}");
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    fleet[0].on("Control/Prune", move |stream| {
        let told = told.clone();
        async move {
            refuse(stream, 2, "first", false).await;
            let _ = told.send(());
        }
    });
    let second = std::sync::Arc::new(tokio::sync::Notify::new());
    let go = std::sync::Arc::clone(&second);
    fleet[2].on("Control/Prune", move |stream| {
        let go = std::sync::Arc::clone(&go);
        async move {
            go.notified().await;
            refuse(stream, 2, "second", false).await;
        }
    });
    let pruning = client.control("Prune").await;
    tells.recv().await.expect("a failure");
    eventually("the proxy has seen it", Duration::from_secs(5), || {
        let left_out = proxy.records("backend left out of answer");
        left_out.iter().any(|record| record["backend"] == "f0").then_some(())
    });
    second.notify_one();
    let ended = pruning.ended().await;
    assert_eq!((ended.code(), &*ended.message()), (Some(2), "first"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_blobs_has_clean_headers_and_a_refusal_of_all_is_one() {
    let fleet = FakeDaemon::fleet(2).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    let list = || client.send("/containerd.services.content.v1.Content/List", &[], EMPTY);
    for (code, message) in [(0, ""), (12, "unknown")] {
        for daemon in &fleet {
            let said = if code == 0 { "stale" } else { message };
            daemon.on("Content/List", move |stream| refuse(stream, code, said, true));
        }
        let ended = list().await.ended().await;
        assert_eq!((ended.code(), &*ended.message()), (Some(code), message), "{ended:?}");
    }
}

const EMPTY: Bytes = Bytes::from_static(&[0, 0, 0, 0, 0]);

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_breaks_off_has_a_word_of_its_own() {
    let fleet = FakeDaemon::fleet(2).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    fleet[0].on("Control/Prune", |mut stream| async move {
        stream.read().await;
        let mut out = stream.headers();
        // A flag that no message has.
        let _ = send(&mut out, Bytes::from_static(&[9, 0, 0, 0, 0])).await;
        let _ = out.send_trailers(trailers(0, ""));
    });
    let ended = client.control("Prune").await.ended().await;
    assert_eq!((ended.code(), ended.marker()), (Some(14), Some("incomplete")), "{ended:?}");
    assert!(ended.message().contains("backend f0"), "{ended:?}");
}

#[test]
fn an_error_names_a_few_backends_and_counts_the_others() {
    let unreachable = |builder: Builder, index| {
        builder.backend(&format!("b{index}=tcp://127.0.0.1:{}", index + 1))
    };
    let proxy = (0..8).fold(Builder::default(), unreachable).args(&["--max-wait", "0s"]).start();
    let output = run(buildctl(&proxy.addr()).arg("du"));
    let told = text(&output);
    assert!(told.contains("none of b0, b1, b2, b3, b4 and 3 more answered"), "{told}");
    let output = run(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN true")));
    assert!(text(&output).contains("and 3 more"), "{}", text(&output));
}

/// Three daemons with records whose descriptions are longer together than one message may be.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_usage_above_one_message_is_cut_and_complete() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for daemon in &fleet {
        daemon.on("Control/DiskUsage", |mut stream| async move {
            stream.read().await;
            let mut usage = Vec::new();
            for number in 0..7_u8 {
                // UsageRecord{ID=1, Size=4, Description=9}
                let mut record = vec![0x0a, 1, b'a' + number, 0x20, 7, 0x4a];
                prost::encoding::encode_varint(1 << 20, &mut record);
                record.resize(record.len() + (1 << 20), b'd');
                usage.push(0x0a);
                prost::encoding::encode_varint(record.len() as u64, &mut usage);
                usage.extend(record);
            }
            let mut out = stream.headers();
            let len = u32::try_from(usage.len()).expect("small").to_be_bytes();
            let _ = send(&mut out, [&[0], &len[..], &usage].concat().into()).await;
            let _ = out.send_trailers(trailers(0, ""));
        });
    }
    let du = run(buildctl(&proxy.addr()).args(["du", "--format", "{{range .}}{{.Size}}\n{{end}}"]));
    let told = text(&du);
    assert!(du.status.success(), "{}", &told[..told.len().min(500)]);
    assert_eq!(
        told.lines().filter(|line| *line == "7").count(),
        21,
        "{}",
        &told[..200.min(told.len())]
    );
}
