//! A client that opens or resets calls as fast as possible is refused; nobody else is.

use std::time::{Duration, Instant};

use h2::Reason;

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        frames::{END_HEADERS, END_STREAM, Frame, HEADERS, PING, RawFrames, call_block},
        proxy::Proxy,
        raw_client::RawClient,
    },
};

const STATUS: &str = "/moby.buildkit.v1.Control/Status";
const READ_FILE: &str = "/moby.buildkit.v1.frontend.LLBBridge/ReadFile";

/// The calls of one round: fewer than a client may reset before the proxy has taken them.
const ROUND: u32 = 500;

/// The longest time that an attacker needs on a busy machine. The pace allows 1000 new calls a second.
const LIMIT: Duration = Duration::from_secs(120);

/// Repeats `round` until the proxy has refused a call because of its pace.
async fn until_refused(proxy: &Proxy, mut round: impl AsyncFnMut(u32)) {
    let start = Instant::now();
    let mut next = 1;
    while proxy.metric("buildkit_lb_rejected_total", &["too_many_calls"]) == 0.0 {
        assert!(start.elapsed() < LIMIT, "nothing is refused after {next} streams");
        round(next).await;
        next += 2 * ROUND;
    }
}

/// Sends what `frames` gives for each call of a round, and waits until the proxy has read all of it.
async fn send(client: &mut RawFrames, first: u32, frames: impl Fn(u32) -> Vec<u8>) {
    let round = (0..ROUND).flat_map(|call| frames(first + 2 * call));
    client.write(&round.collect::<Vec<_>>()).await;
    client.send(&Frame::new(PING, 0, 0, vec![0; 8])).await;
    client.until(|frame| frame.kind == PING).await.expect("the connection is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_opened_too_fast_are_refused_and_a_bystander_builds() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let mut attacker = RawFrames::handshaken(&proxy.socket()).await;
    until_refused(&proxy, async |first| {
        send(&mut attacker, first, |stream| {
            // The call has no message, so the daemon is not asked.
            let block = call_block(STATUS, &[]);
            Frame::new(HEADERS, END_HEADERS | END_STREAM, stream, block).encode()
        })
        .await;
    })
    .await;
    bystander::builds(&proxy).await;
    let told = proxy.records("stream rejected");
    let told = told.iter().find(|fields| fields["reason"] == "too_many_calls").expect("told");
    let error = told["error"].as_str().expect("a text");
    assert!(error.contains("opens more than 1 000 calls a second"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_given_up_too_fast_are_refused_and_a_bystander_builds() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    let mut attacker = RawFrames::handshaken(&proxy.socket()).await;
    until_refused(&proxy, async |first| {
        // These calls wait for a build that never comes, until the proxy gives them up.
        send(&mut attacker, first, |stream| {
            let build = [("buildkit-controlapi-buildid", "nobody")];
            let block = call_block(READ_FILE, &build);
            Frame::new(HEADERS, END_HEADERS | END_STREAM, stream, block).encode()
        })
        .await;
        send(&mut attacker, first, |stream| Frame::reset(stream, Reason::CANCEL).encode()).await;
    })
    .await;
    bystander::builds(&proxy).await;
    let told = proxy.records("stream rejected");
    let told = told.iter().find(|fields| fields["reason"] == "too_many_calls").expect("told");
    let error = told["error"].as_str().expect("a text");
    assert!(error.contains("gives up more than 1 000 calls a second"), "{error}");
    let other = RawClient::connect(&proxy.socket()).await;
    assert_eq!(other.control("ListWorkers").await.ended().await.code(), Some(0));
}
