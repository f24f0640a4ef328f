//! Clients that begin handshakes and do not finish them keep nobody else from connecting, and no name takes all connections.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{
    authorities::{Authorities, builds},
    support::{certificates::Request, eventually, proxy::Proxy, raw_client::RawClient},
};

/// More handshakes than may be under way at once.
const BEGUN: usize = 1100;

/// A handshake from another address that stops after its first bytes.
fn begun(proxy: &Proxy) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from: SocketAddr = "127.0.0.2:0".parse().expect("an address");
    socket.bind(&from.into()).expect("loopback has many");
    let to: SocketAddr = proxy.socket().parse().expect("an address");
    socket.connect(&to.into()).expect("accepted");
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"\x16\x03\x01\x02\0\x01").expect("sent");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_nobody_ends_leave_room_for_a_build() {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let authorities = Authorities::new();
    let daemons = [authorities.daemon("d0", &Request::SERVER)];
    let proxy = authorities.proxy(&daemons).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let client = authorities.clients.directory("client", &Request::CLIENT);
    let errors = |reason: &str| {
        let label = format!("reason=\"{reason}\"");
        proxy.metric("buildkit_lb_connection_errors_total", &[&label])
    };
    let attack: Vec<_> = (0..BEGUN).map(|_| begun(&proxy)).collect();
    eventually("all places are taken", Duration::from_secs(20), || {
        (errors("tls_busy") > 0.0).then_some(())
    });
    builds(&proxy, &client, "beside unfinished handshakes");
    eventually("they are given up", Duration::from_secs(30), || {
        let gone = errors("tls_busy") + errors("tls_timeout") >= BEGUN as f64;
        let active = proxy.metric("buildkit_lb_tls_handshakes_active", &[]);
        (gone && active == 0.0).then_some(())
    });
    drop(attack);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_uses_all_it_may_have_is_told_so_and_another_one_builds() {
    let authorities = Authorities::new();
    let daemons = [authorities.daemon("d0", &Request::SERVER)];
    let proxy = authorities.proxy(&daemons).args(&["--max-connections", "16"]).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let own = |name| authorities.clients.directory(name, &Request { name, ..Request::CLIENT });
    let greedy = own("greedy");
    // Each connection comes from an address of its own, and no address has many.
    let connect = |number: usize| {
        let address = format!("127.0.1.{number}");
        let (socket, greedy) = (proxy.socket(), &greedy);
        async move { RawClient::connect_tls_from(&address, &socket, greedy).await }
    };
    let mut calls = Vec::new();
    for number in 1..=14 {
        let client = connect(number).await;
        let answered = client.control("ListenBuildHistory").await.answered().await;
        calls.push((answered.expect("headers"), client));
    }
    let one_more = connect(15).await.control("ListWorkers").await.ended().await;
    assert_eq!(
        (one_more.code(), one_more.marker()),
        (Some(8), Some("too_many_connections")),
        "{one_more:?}"
    );
    assert!(one_more.message().contains("of this name"), "{one_more:?}");
    assert_eq!(proxy.records("connection refused")[0]["client"], "127.0.1.15");
    builds(&proxy, &own("other"), "beside a name that has all it may have");
    drop(calls);
    eventually("the name has connections again", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_connections_active", &[]) == 0.0).then_some(())
    });
    let again = connect(15).await.control("ListWorkers").await.ended().await;
    assert_eq!(again.code(), Some(0), "{again:?}");
}
