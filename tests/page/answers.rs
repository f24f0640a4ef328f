//! The answers of the page's paths, without a browser.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::support::{
    eventually, free_port,
    proxy::{Builder, Proxy},
};

const TOKEN: &str = "0f8a3e1c9b7d4652a1c0e9f8b7d6a543";

/// A proxy for a daemon that does not run.
fn proxy(args: &[&str]) -> Proxy {
    Builder::default().backend(&format!("b=tcp://127.0.0.1:{}", free_port())).args(args).start()
}

/// Sends a request from `127.0.0.HOST` and returns the head of the answer and a reader of its body.
fn ask_from(host: u8, proxy: &Proxy, method: &str, path: &str) -> (String, BufReader<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, host], 0)).into()).expect("a loopback address");
    let port: SocketAddr = proxy.admin_socket().parse().expect("an address");
    socket.connect(&port.into()).expect("the admin port");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let (mut reader, mut head) = (BufReader::new(stream), String::new());
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("read") > 0, "no answer: {head}");
    }
    (head.to_lowercase(), reader)
}

fn ask(proxy: &Proxy, method: &str, path: &str) -> (String, BufReader<TcpStream>) {
    ask_from(1, proxy, method, path)
}

#[test]
fn every_answer_forbids_what_the_page_does_not_need() {
    let proxy = proxy(&[]);
    for (path, code, kind) in [
        ("/", 200, "text/html; charset=utf-8"),
        ("/builds/none", 404, "text/html; charset=utf-8"),
        ("/page.css", 200, "text/css; charset=utf-8"),
        ("/page.js", 200, "text/javascript; charset=utf-8"),
        ("/events", 200, "text/event-stream"),
    ] {
        for method in ["GET", "HEAD"] {
            let (head, _body) = ask(&proxy, method, path);
            assert!(head.starts_with(&format!("http/1.1 {code} ")), "{method} {path}: {head}");
            for header in [
                &format!("content-type: {kind}"),
                "cache-control: no-store",
                "x-content-type-options: nosniff",
                "referrer-policy: no-referrer",
                "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src \
                 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r",
            ] {
                assert!(
                    head.contains(&format!("\r\n{header}")),
                    "{method} {path}: {header} in {head}"
                );
            }
        }
        assert_eq!(proxy.admin("POST", path).0, 405, "{path}");
    }
    let (code, text) = proxy.admin("GET", "/no-such-path");
    assert!(code == 404 && text.contains("/status.json"), "{code} {text}");
    let (_code, page) = proxy.admin("GET", "/");
    for inline in
        [" style=", "<style", " onclick=", " onload=", "javascript:", "http://", "https://"]
    {
        // The namespace of the picture for the tab is no address.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(inline), "{inline}");
    }
}

#[test]
fn only_who_may_read_sees_the_page() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), TOKEN).expect("written");
    let file = file.path().to_str().expect("UTF-8");
    let proxy = proxy(&["--admin-token-file", file, "--admin-restrict-reading"]);
    for path in ["/", "/builds/none", "/events", "/page.js", "/page.css"] {
        let (code, text) = proxy.admin("GET", path);
        assert!(code == 401 && !text.contains("<html"), "{path}: {code} {text}");
    }
    let with_token = format!("Authorization: Bearer {TOKEN}\r\n");
    let (code, page) = proxy.admin_with("GET", "/", &with_token);
    assert!(code == 200 && page.contains("Fleet"), "{code} {page}");
    assert_eq!(proxy.control("GET", "/").0, 200);
}

#[test]
fn events_come_at_once_and_at_each_change() {
    let proxy = proxy(&[]);
    let (_head, events) = ask(&proxy, "GET", "/events");
    let mut events = events.lines().map(|line| line.expect("read"));
    let mut next = || events.find(|line| line == "event: changed").expect("an event");
    next();
    assert_eq!(proxy.control("POST", "/backends/b/cordon").0, 200);
    next();
    eventually("the page has the cordon", Duration::from_secs(60), || {
        proxy.admin("GET", "/").1.contains("cordoned").then_some(())
    });
}

#[test]
fn watchers_take_no_more_than_their_places() {
    let proxy = proxy(&[]);
    // One address may have 32 connections.
    let watch = |n: u8| ask_from(2 + n / 16, &proxy, "GET", "/events");
    let watching: Vec<_> = (0..128).map(watch).collect();
    assert!(watching.iter().all(|(head, _events)| head.starts_with("http/1.1 200 ")));
    let (head, mut text) = ask(&proxy, "GET", "/events");
    assert!(head.starts_with("http/1.1 503 ") && head.contains("retry-after: 30"), "{head}");
    let mut told = String::new();
    text.read_to_string(&mut told).expect("read");
    assert!(told.contains("too many browsers"), "{told}");
    assert_eq!(proxy.admin("GET", "/").0, 200, "the page itself is there for everybody");
    drop(watching);
    eventually("their places are free", Duration::from_secs(60), || {
        ask(&proxy, "GET", "/events").0.starts_with("http/1.1 200 ").then_some(())
    });
}
