//! Clients that speak another protocol to the port, again and again.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use crate::{
    bystander,
    support::{buildkitd::Buildkitd, eventually, proxy::Proxy},
};

const KINDS: [(&str, &[u8]); 5] = [
    ("tls", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"),
    ("http1", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("proxy_header", b"PROXY TCP4 10.1.2.3 10.0.0.2 5 6\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("proxy_header", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("not_http2", b"SSH-2.0-OpenSSH_9.2\r\n"),
];

/// Sends `bytes` and returns what the proxy answers before it closes.
fn answer(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(proxy.socket()).expect("accepted");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    stream.write_all(bytes).expect("sent");
    let mut answer = Vec::new();
    // A reset counts as closing.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_speak_http2_is_counted_by_kind_and_told_now_and_then() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    for _ in 0..5 {
        for (kind, bytes) in KINDS {
            let answer = answer(&proxy, bytes);
            assert_eq!(answer.starts_with("HTTP/1.1 505 "), kind == "http1", "{answer}");
            assert_eq!(answer.ends_with("gRPC over HTTP/2.\n"), kind == "http1");
        }
    }
    bystander::builds(&proxy).await;
    for (kind, count) in [("tls", 5.0), ("http1", 5.0), ("proxy_header", 10.0), ("not_http2", 5.0)]
    {
        let reason = format!("reason=\"{kind}\"");
        eventually("they are counted", Duration::from_secs(10), || {
            (proxy.metric("buildkit_lb_connection_errors_total", &[&reason]) == count).then_some(())
        });
    }
    let told = proxy.records("client does not speak the protocol of this port");
    let mut kinds: Vec<_> = told.iter().filter_map(|fields| fields["kind"].as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, ["http1", "not_http2", "proxy_header", "tls"]);
    assert!(told.len() < 12, "{} lines for 25 connections", told.len());
    assert!(told.iter().all(|fields| fields["client"] == "127.0.0.1"), "{told:?}");
    let seen = |fields: &serde_json::Value| fields["seen"] == "PROXY TCP4 10.1.2.3 10.0";
    assert!(told.iter().any(seen), "{told:?}");
}
