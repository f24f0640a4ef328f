//! Messages that no client of BuildKit sends.

use std::time::Duration;

use buildkit_lb::wire::{
    self,
    control::{Attr, SolveRequest},
};
use bytes::Bytes;

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        eventually,
        fake_daemon::{FakeDaemon, send},
        proxy::{Builder, Proxy},
        raw_client::{Ended, RawClient},
    },
};

const SOLVE: &str = "/moby.buildkit.v1.Control/Solve";
const PING: &str = "/moby.buildkit.v1.frontend.LLBBridge/Ping";
const RETURN: &str = "/moby.buildkit.v1.frontend.LLBBridge/Return";

fn framed(len: usize, payload: &[u8]) -> Bytes {
    let len = u32::try_from(len).expect("a message's length").to_be_bytes();
    [&[0], &len[..], payload].concat().into()
}

/// `parts` as field `number` of a message.
fn within(number: u8, parts: &[&[u8]]) -> Vec<u8> {
    let inner = parts.concat();
    [&[number << 3 | 2, u8::try_from(inner.len()).expect("short")], &inner[..]].concat()
}

/// ReturnRequests without fields that a daemon takes for granted.
fn malformed_returns() -> [Vec<u8>; 4] {
    let key = within(1, &[b"linux/amd64"]);
    [
        // Neither a result nor an error.
        Vec::new(),
        // A key of `refs` without a value, and a key of `attestations` without one.
        within(1, &[&within(4, &[&within(1, &[&key])])]),
        within(1, &[&within(12, &[&key])]),
        // Only the daemon's decoder takes this for a key: the last two bytes are the value.
        within(1, &[&within(4, &[&within(1, &[&[0x0d, 5, b'a', b'a', b'a', 0x12, 0]])])]),
    ]
}

/// Opens a build whose frontend is this client, and returns `message` from the frontend.
async fn returned(client: &RawClient, build: &str, message: &[u8]) -> Ended {
    let _solve = client.solve(build, build).await;
    let headers = [("buildkit-controlapi-buildid", build)];
    client.send(RETURN, &headers, framed(message.len(), message)).await.ended().await
}

fn socket(daemon: &Buildkitd) -> String {
    daemon.addr().trim_start_matches("tcp://").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_return_that_ends_a_daemon_does_not_reach_it() {
    let mut daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let client = RawClient::connect(&proxy.socket()).await;
    for (number, message) in malformed_returns().into_iter().enumerate() {
        let ended = returned(&client, &format!("build-{number}"), &message).await;
        assert_eq!((ended.code(), ended.marker()), (Some(3), Some("bad_message")), "{ended:?}");
        let text = ended.message();
        assert!(text.contains("Return"), "{text}");
    }
    bystander::builds(&proxy).await;
    // Each of these messages ends a daemon that has no proxy in front.
    for (number, message) in malformed_returns().into_iter().enumerate() {
        let direct = RawClient::connect(&socket(&daemon)).await;
        let _ended = returned(&direct, &format!("direct-{number}"), &message).await;
        eventually("the daemon has ended", Duration::from_secs(10), || {
            daemon.process().log().contains("panic: ").then_some(())
        });
        daemon.restart();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_return_that_a_daemon_takes_passes() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let entry = |value: &[u8]| within(1, &[&within(1, &[b"linux/amd64"]), value]);
    let old_ref = within(1, &[b""]);
    let valid = [
        within(1, &[]),
        within(1, &[&old_ref]),
        within(1, &[&within(2, &[&entry(&within(2, &[]))])]),
        within(1, &[&within(3, &[])]),
        within(
            1,
            &[
                &within(4, &[&entry(&within(2, &[]))]),
                &within(12, &[&within(1, &[b"k"]), &within(2, &[])]),
            ],
        ),
        within(2, &[&[0x08, 2], &within(2, &[b"it failed"])]),
    ];
    let direct = RawClient::connect(&socket(&daemon)).await;
    let proxied = RawClient::connect(&proxy.socket()).await;
    for (number, message) in valid.into_iter().enumerate() {
        let mut answers = Vec::new();
        for (side, client) in [("direct", &direct), ("proxied", &proxied)] {
            let ended = returned(client, &format!("{side}-{number}"), &message).await;
            assert_eq!(ended.marker(), None, "{number} {side}: {}", ended.message());
            answers.push((ended.code(), ended.message()));
        }
        assert_eq!(answers[0], answers[1], "message {number}");
        assert_eq!(answers[0].0, Some(0), "message {number}: {}", answers[0].1);
    }
    bystander::builds(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_beside_a_solve_that_is_too_large_end_with_it() {
    let daemon = FakeDaemon::start("only").await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let client = RawClient::connect(&proxy.socket()).await;
    let headers = [("buildkit-controlapi-buildid", "large")];
    let ping = client.send(PING, &headers, framed(0, &[])).await;
    let mut session = client.session("large").await;
    let status = client.by_ref("Status", "large").await;
    eventually("they wait", Duration::from_secs(5), || {
        (proxy.metric("buildkit_lb_parked_streams", &[]) == 3.0).then_some(())
    });
    let request = [within(1, &[b"large"]), within(5, &[b"large"])].concat();
    let mut solve = client.call(SOLVE, &[]).await;
    let _ = send(&mut solve.upload, framed(17 << 20, &request)).await;
    let too_large =
        |ended: &Ended| (ended.code(), ended.marker()) == (Some(8), Some("message_too_large"));
    let solve = solve.ended().await;
    assert!(too_large(&solve) && solve.message().contains("Solve"), "{solve:?}");
    // Without the refusal all of these calls would wait for seconds and then say that there is no such job.
    let ping = ping.ended().await;
    assert!(too_large(&ping), "{ping:?}");
    assert_eq!(status.ended().await.code(), Some(0), "the client prints the Solve's error");
    let _ = session.upload.send_data(Bytes::new(), true);
    assert_eq!(session.ended().await.code(), Some(0));
    assert_eq!(daemon.seen("LLBBridge/Ping").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_method_whose_message_it_is_about() {
    let daemon = FakeDaemon::start("only").await;
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let client = RawClient::connect(&proxy.socket()).await;
    for method in ["DiskUsage", "Prune", "Solve"] {
        let path = format!("/moby.buildkit.v1.Control/{method}");
        let ended = client.send(&path, &[], framed(99, b"short")).await.ended().await;
        assert_eq!((ended.code(), ended.marker()), (Some(3), Some("bad_message")), "{ended:?}");
        assert!(ended.message().contains(&format!("the message of {method} cannot be read")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_solve_names_as_many_sessions_as_a_build_can_need_and_no_more() {
    let daemon = FakeDaemon::start("only").await;
    daemon.finish();
    let proxy = Builder::default().backend(&daemon.backend()).start();
    let client = RawClient::connect(&proxy.socket()).await;
    let solve = |count: usize| {
        let shared = |number: usize| Attr {
            key: format!("local-sessionid:{number}").into(),
            value: format!("session-{number}").into(),
        };
        let frontend_attrs = (0..count).map(shared).collect();
        wire::encode(&SolveRequest { r#ref: "r".into(), frontend_attrs, ..Default::default() })
    };
    let ended = client.send(SOLVE, &[], solve(128)).await.ended().await;
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let ended = client.send(SOLVE, &[], solve(129)).await.ended().await;
    assert_eq!((ended.code(), ended.marker()), (Some(8), Some("limit")), "{ended:?}");
}
