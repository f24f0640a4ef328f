//! Sessions that come early, end first, or carry many bytes.

use buildkit_lb::wire::{self, control::BytesMessage};
use bytes::Bytes;

use crate::{
    EMPTY, WAIT, one, proxy,
    support::{
        eventually,
        fake_daemon::{FakeDaemon, send, trailers},
        frames::PREFACE,
        raw_client::RawClient,
    },
};

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
    // The proxy has bound each session without a build, before its client gives up.
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
        // All that the client has heard is the daemon's.
        assert_eq!(session.ended().await.body, [preface.clone(), EMPTY].concat());
        drop(solve);
    }
}
