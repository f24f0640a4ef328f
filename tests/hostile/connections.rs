//! Clients that hold many connections keep nobody else from connecting.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use rlimit::Resource;
use tokio::net::TcpSocket;

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl_build, run, text},
        eventually,
        frames::RawFrames,
        proxy::{Builder, Proxy},
        raw_client::RawClient,
    },
};

fn errors(proxy: &Proxy, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    proxy.metric("buildkit_lb_connection_errors_total", &[&reason])
}

/// A client with an address of its own.
async fn stranger(proxy: &Proxy) -> RawClient {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("loopback has many");
    let proxy: SocketAddr = proxy.socket().parse().expect("an address");
    RawClient::over(socket.connect(proxy).await.expect("accepted")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_place_for_a_build() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).args(&["--max-connections", "16"]).start();
    let silent: Vec<_> =
        (0..40).map(|_| TcpStream::connect(proxy.socket()).expect("accepted")).collect();
    bystander::builds(&proxy).await;
    let mut handshaken = Vec::new();
    for _ in 0..40 {
        handshaken.push(RawFrames::handshaken(&proxy.socket()).await);
    }
    bystander::builds(&proxy).await;
    eventually("the idle ones have left", Duration::from_secs(10), || {
        (errors(&proxy, "evicted") >= 60.0).then_some(())
    });
    let told = proxy.records("idle connection closed to admit another");
    assert!(!told.is_empty() && told.len() < 20, "{told:?}");
    assert_eq!(told[0]["client"], "127.0.0.1");
    drop((silent, handshaken));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_uses_all_it_may_have_is_told_so_and_another_builds() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).args(&["--max-connections", "16"]).start();
    let mut calls = Vec::new();
    for _ in 0..14 {
        let client = stranger(&proxy).await;
        calls.push((client.control("ListenBuildHistory").await.answered().await, client));
    }
    let one_more = stranger(&proxy).await.control("ListWorkers").await.ended().await;
    assert_eq!(
        (one_more.code(), one_more.marker()),
        (Some(8), Some("too_many_connections")),
        "{one_more:?}"
    );
    assert!(one_more.message().contains("as many connections as one address"), "{one_more:?}");
    assert_eq!(errors(&proxy, "too_many_connections"), 1.0);
    assert_eq!(proxy.records("connection refused")[0]["client"], "127.0.0.2");
    bystander::builds(&proxy).await;
    assert!(calls.iter().all(|(answered, _)| answered.is_ok()), "calls go on");
    drop(calls);
    eventually("a permit is free again", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 0.0).then_some(())
    });
    let again = stranger(&proxy).await.control("ListWorkers").await.ended().await;
    assert_eq!(again.code(), Some(0), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_nobody_uses_holds_no_permit() {
    let fleet = Buildkitd::fleet(1);
    let pools = ["a", "b", "c"].map(|name| {
        let (listen, backend) = ("tcp://127.0.0.1:0", fleet[0].backend());
        format!("[[pool]]\nname = '{name}'\nlisten = '{listen}'\nbackend = '{backend}'\n")
    });
    let proxy =
        Builder::default().file(&format!("max-connections = 2\n{}", pools.concat())).start();
    let context = Context::busybox("RUN echo third");
    for pool in ["c", "b", "a"] {
        let output = run(&mut buildctl_build(&proxy.addr_of(pool), &context));
        assert!(output.status.success(), "{pool}: {}", text(&output));
    }
    assert_eq!(errors(&proxy, "evicted"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_want_of_descriptors_is_told_once_and_passes() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).args(&["--log-level=debug"]).start();
    proxy.wait_ready(1, Duration::from_secs(10));
    let pid = proxy.process.pid().cast_signed();
    let (mut soft, mut hard) = (0, 0);
    let before = Some((&mut soft, &mut hard));
    rlimit::prlimit(pid, Resource::NOFILE, None, before).expect("the process runs");
    rlimit::prlimit(pid, Resource::NOFILE, Some((5, hard)), None).expect("lowered");
    let waiting = TcpStream::connect(proxy.socket()).expect("the system accepts");
    eventually("it is told", Duration::from_secs(10), || {
        (!proxy.records("accept failed").is_empty()).then_some(())
    });
    // The proxy tries again and again, and tells operators nothing more.
    eventually("it tries again", Duration::from_secs(10), || {
        (proxy.records("accept still fails").len() >= 3).then_some(())
    });
    rlimit::prlimit(pid, Resource::NOFILE, Some((soft, hard)), None).expect("raised");
    bystander::builds(&proxy).await;
    assert_eq!(proxy.records("accept failed").len(), 1);
    assert_eq!(proxy.records("accept recovered").len(), 1);
    let limited = &proxy.records("connection limit set")[0];
    assert!(limited["connections"].as_u64().is_some_and(|count| count > 0), "{limited}");
    drop(waiting);
}
