//! Resets pass in both directions, with their reasons.

use std::{collections::HashSet, sync::Arc};

use h2::Reason;
use tokio::sync::Notify;

use crate::{
    EMPTY, WAIT, one,
    support::{
        eventually,
        fake_daemon::{Stream, send},
        raw_client::{Call, RawClient},
    },
};

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
