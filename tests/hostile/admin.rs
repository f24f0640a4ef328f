//! Clients that may only read attack the admin port.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use crate::{
    bystander,
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl_build, run, text},
        eventually,
        frames::PREFACE,
        proxy::Proxy,
    },
};

const TOKEN: &str = "bf3cbbc0a7d24f0a9d4c8c3a5b1f60de";

/// What a build step in its daemon's network can do with busybox: read the page, then try to take every daemon out of
/// the fleet, with each method and with tokens that it can guess.
const STEP: &str = r#"
wget -q -O /status "http://$ADMIN/status.json" || exit 90
for name in d0 d1; do
  grep -q "\"name\":\"$name\"" /status || exit 91
  for path in drain?timeout=10ms drain?timeout=10ms\&lease=1h cordon; do
    wget -q -O - "http://$ADMIN/backends/$name/$path" && exit 92
    wget -q -O - --post-data= "http://$ADMIN/backends/$name/$path" && exit 93
    for token in "" x "$name" 00000000000000000000000000000000; do
      wget -q -O - --header "Authorization: Bearer $token" --post-data= \
        "http://$ADMIN/backends/$name/$path" && exit 94
    done
  done
done
echo "tried everything"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_build_step_with_the_hosts_network_takes_no_daemon_out_of_the_fleet() {
    let tokens = tempfile::NamedTempFile::new().expect("a file");
    fs::write(tokens.path(), TOKEN).expect("written");
    let tokens = tokens.path().to_str().expect("UTF-8").to_owned();
    let fleet = Buildkitd::fleet(2);
    for (args, refused) in [(&["--admin-token-file", &*tokens][..], "token"), (&[], "disabled")] {
        let proxy = Proxy::in_front_of(&fleet).args(args).start();
        proxy.wait_ready(2, Duration::from_secs(20));
        let context = Context::busybox("ARG ADMIN\nCOPY step /step\nRUN --network=host sh /step");
        context.write("step", STEP);
        let admin = format!("build-arg:ADMIN={}", proxy.admin_socket());
        let mut build = buildctl_build(&proxy.addr(), &context);
        build.args(["--allow", "network.host", "--no-cache", "--opt", &admin]);
        let step = tokio::task::spawn_blocking(move || run(&mut build));
        let (output, ()) = tokio::join!(step, bystander::builds(&proxy));
        let output = output.expect("no panic");
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("tried everything"), "{}", text(&output));
        assert_eq!(proxy.metric("buildkit_lb_backend_state", &["\"ready\""]), 2.0);
        let refusals = proxy.metric("buildkit_lb_admin_requests_refused_total", &[refused]);
        assert_eq!(refusals, 2.0 * 3.0 * 5.0, "each POST, and a GET changes nothing anywhere");
        let told = proxy.records("admin request refused");
        assert!((1..=3).contains(&told.len()), "{told:?}");
        bystander::builds(&proxy).await;
    }
}

/// A connection that the proxy has not closed.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).expect("a socket");
    let mut stream = stream;
    matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_keep_neither_probes_nor_scrapes_out() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let before = proxy.process.descriptors();
    // From the address of the probes, which a daemon in its node's network shares. Each connection sends the beginning
    // of a request.
    let idle: Vec<_> = (0..1000)
        .map(|n| {
            let mut stream = TcpStream::connect(proxy.admin_socket()).expect("connected");
            let _ = stream.write_all(&b"GET /metrics HTTP/1.1\r\nx:"[..n % 20]);
            stream
        })
        .collect();
    for path in ["/livez", "/readyz", "/metrics", "/status.json"] {
        assert_eq!(proxy.admin("GET", path).0, 200, "{path}");
    }
    bystander::builds(&proxy).await;
    eventually("most of them are closed", Duration::from_secs(10), || {
        (idle.iter().filter(|stream| is_open(stream)).count() <= 32).then_some(())
    });
    let held = proxy.process.descriptors().saturating_sub(before);
    assert!(held < 64, "{held} descriptors more than before");
    assert!(proxy.metric("buildkit_lb_admin_connections_closed_total", &["share"]) >= 900.0);
    assert_eq!(proxy.records("admin connection closed").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_an_end_and_a_body_hold_no_memory() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let before = proxy.process.memory_kib("VmRSS");
    let mut heads = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(proxy.admin_socket()).expect("connected");
        // As much as the proxy takes: up to a megabyte of one header.
        stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a socket");
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nx: ");
        let _ = stream.write_all(&vec![b'a'; 1 << 20]);
        heads.push(stream);
    }
    // The proxy does not read a body, however large the announced length is.
    let body = proxy.admin_with("GET", "/livez", "Content-Length: 1000000000\r\n");
    assert_eq!(body.0, 200);
    bystander::builds(&proxy).await;
    let grown = proxy.process.memory_kib("VmRSS").saturating_sub(before);
    println!("200 heads without an end: {grown} KiB more");
    assert!(grown < 64 << 10, "{grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_when_clients_have_taken_all_descriptors() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).descriptors(128).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    // Clients that have finished the handshake and keep the connection open.
    let handshake = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let connect = || {
        let mut stream = TcpStream::connect(proxy.socket()).expect("connected");
        stream.write_all(&handshake).expect("written");
        stream
    };
    let clients: Vec<_> = (0..200).map(|_| connect()).collect();
    eventually("the proxy holds what it may", Duration::from_secs(20), || {
        (proxy.process.descriptors() >= 110 || clients.iter().any(|c| !is_open(c))).then_some(())
    });
    for path in ["/livez", "/readyz", "/metrics", "/livez", "/metrics"] {
        assert_eq!(proxy.admin("GET", path).0, 200, "{path}");
    }
    drop(clients);
    bystander::builds(&proxy).await;
}
