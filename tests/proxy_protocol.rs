//! Clients behind a hop that tells their addresses: real builds through a hop, and hops that have no right to tell
//! addresses.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::{Context, build, buildctl, buildctl_tls, succeed},
    eventually,
    proxy::Proxy,
};

/// A hop at 127.0.0.1 that sends `header` before the bytes of each client.
struct Hop {
    port: u16,
}

impl Hop {
    fn new(proxy: &Proxy, header: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (to, header) = (proxy.socket(), header.to_vec());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut server = TcpStream::connect(&to).expect("accepted");
                server.write_all(&header).expect("sent");
                let client = client.expect("a client");
                forward(
                    client.try_clone().expect("a handle"),
                    server.try_clone().expect("a handle"),
                );
                forward(server, client);
            }
        });
        Self { port }
    }

    fn addr(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}

/// A header of version 2 for a client at 10.9.8.7.
fn v2() -> Vec<u8> {
    let addresses = [&[10, 9, 8, 7, 10, 0, 0, 1][..], &[0, 5, 4, 210]].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x21, 0x11, 0, 12], &addresses].concat()
}

/// The clients of the builds that have ended.
fn clients(proxy: &Proxy, count: usize) -> Vec<String> {
    eventually("the builds are told", Duration::from_secs(10), || {
        let records = proxy.records("build ended");
        let clients = records.iter().filter_map(|fields| fields["client"].as_str());
        let clients: Vec<_> = clients.map(str::to_owned).collect();
        (clients.len() >= count).then_some(clients)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_behind_a_hop_is_known_by_its_own_address() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet);
    let proxy = proxy.args(&["--proxy-protocol-from", "127.0.0.1/32"]).start();
    let v1 = Hop::new(&proxy, b"PROXY TCP4 10.1.2.3 10.0.0.1 5 1234\r\n");
    succeed(&mut build(buildctl(&v1.addr()), &Context::busybox("RUN echo one")));
    let v2 = Hop::new(&proxy, &v2());
    succeed(&mut build(buildctl(&v2.addr()), &Context::busybox("RUN echo two")));
    assert_eq!(clients(&proxy, 2), ["10.1.2.3", "10.9.8.7"]);
    // The health check of the hop itself.
    let own = Hop::new(&proxy, b"PROXY UNKNOWN\r\n");
    succeed(buildctl(&own.addr()).args(["debug", "workers"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_begins_after_the_header() {
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let client = authority.directory("client", &Request::CLIENT);
    let fleet = Buildkitd::fleet(1);
    let own = own.to_str().expect("UTF-8");
    let proxy = Proxy::in_front_of(&fleet);
    let proxy = proxy.args(&["--tls-dir", own, "--proxy-protocol-from", "127.0.0.0/8"]).start();
    let hop = Hop::new(&proxy, &v2());
    succeed(&mut build(buildctl_tls(&hop.addr(), &client), &Context::busybox("RUN echo tls")));
    assert_eq!(clients(&proxy, 1), ["10.9.8.7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_should_send_a_header_and_does_not_is_refused_and_so_is_who_should_not() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet);
    let proxy = proxy.args(&["--proxy-protocol-from", "127.0.0.1"]).start();
    let closed = |from: &str, bytes: &[u8]| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        let from: std::net::SocketAddr = format!("{from}:0").parse().expect("an address");
        socket.bind(&from.into()).expect("loopback has many");
        let to: std::net::SocketAddr = proxy.socket().parse().expect("an address");
        socket.connect(&to.into()).expect("accepted");
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream.write_all(bytes).expect("sent");
        let mut answer = Vec::new();
        // A reset counts as closing.
        match stream.read_to_end(&mut answer) {
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
            Ok(_len) => assert_eq!(answer, b""),
        }
    };
    closed("127.0.0.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    closed("127.0.0.1", b"PROXY TCP4 nobody 10.0.0.1 5 6\r\n");
    closed("127.0.0.1", b"PROXY ");
    closed("127.0.0.2", b"PROXY TCP4 10.1.2.3 10.0.0.1 5 6\r\n");
    for reason in
        ["proxy_header_missing", "proxy_header_broken", "proxy_header_timeout", "proxy_header"]
    {
        eventually(reason, Duration::from_secs(10), || {
            let label = format!("reason=\"{reason}\"");
            let count = proxy.metric("buildkit_lb_connection_errors_total", &[&label]);
            (count == 1.0).then_some(())
        });
    }
    let hop = Hop::new(&proxy, b"PROXY TCP4 10.1.2.3 10.0.0.1 5 1234\r\n");
    succeed(&mut build(buildctl(&hop.addr()), &Context::busybox("RUN echo beside")));
}
