//! Answers pass as they are: trailers, metadata, error details, and each half of a stream by itself.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::{
    EMPTY, WAIT, one, proxy,
    support::{
        eventually,
        fake_daemon::{FakeDaemon, head, send, trailers},
        raw_client::RawClient,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_trailers_only_answer_stays_one_and_gains_nothing() {
    let (daemon, _proxy, client) = one().await;
    daemon.on("Control/Info", |mut stream| async move {
        let mut response = head();
        response.headers_mut().extend(trailers(5, "a%20daemon's words"));
        response.headers_mut().insert("x-bin", HeaderValue::from_static("AAEC/+"));
        let _ = stream.respond.send_response(response, true);
    });
    let answered = client.control("Info").await.answered().await.expect("headers");
    assert!(answered.body.is_end_stream(), "headers must end the stream");
    let mut names: Vec<_> = answered.headers.keys().map(|name| name.as_str().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["content-type", "grpc-message", "grpc-status", "x-bin"]);
    assert_eq!(answered.headers["x-bin"], "AAEC/+");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_metadata_and_trailers_pass_byte_for_byte() {
    let (daemon, _proxy, client) = one().await;
    for len in [100 << 10, 1 << 20] {
        let details: String = (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        let metadata = &details[..48 << 10];
        let sent = details.clone();
        daemon.on("Control/Info", move |mut stream| {
            let sent = sent.clone();
            async move {
                assert_eq!(stream.head.headers["x-large"], sent[..48 << 10]);
                let mut out = stream.headers();
                let mut trailers = trailers(2, "");
                trailers.insert("grpc-status-details-bin", sent.parse().expect("a value"));
                let _ = out.send_trailers(trailers);
            }
        });
        let path = "/moby.buildkit.v1.Control/Info";
        let ended = client.send(path, &[("x-large", metadata)], EMPTY).await.ended().await;
        assert_eq!(ended.code(), Some(2), "{ended:?}");
        assert_eq!(ended.trailers["grpc-status-details-bin"], details);
    }
}

/// Answers `Health/Check` with error details of `len` bytes, in trailers after headers or in a response of trailers
/// only.
fn answer_with_details(daemon: &FakeDaemon, len: usize, alone: bool) {
    daemon.on("Health/Check", move |mut stream| async move {
        stream.read().await;
        let details = HeaderValue::try_from("x".repeat(len)).expect("a value");
        let mut trailers = trailers(2, "");
        trailers.insert("grpc-status-details-bin", details);
        if alone {
            let mut response = head();
            response.headers_mut().extend(trailers);
            let _ = stream.respond.send_response(response, true);
        } else {
            let _ = stream.headers().send_trailers(trailers);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn error_details_above_the_limit_fail_their_call_alone_and_tell_their_size() {
    let (daemon, proxy, client) = one().await;
    let solve = client.solve("r", "s").await;
    let check = async || {
        let call = client.send("/grpc.health.v1.Health/Check", &[], EMPTY).await;
        call.ended().await
    };
    for alone in [false, true] {
        for len in [4 << 20, 8 << 20] {
            answer_with_details(&daemon, len, alone);
            let ended = check().await;
            let told = (ended.code(), ended.marker());
            assert_eq!(told, (Some(8), Some("answer_too_large")), "{len}, alone: {alone}");
            let size = ended.message().split(' ').find_map(|word| word.parse::<usize>().ok());
            assert!(size.is_some_and(|size| (len..len + 1_000).contains(&size)), "{ended:?}");
        }
        answer_with_details(&daemon, (4 << 20) - 1_000, alone);
        let ended = check().await;
        assert_eq!((ended.code(), ended.marker()), (Some(2), None), "alone: {alone}");
    }
    assert_eq!(client.bridge("Ping", "r").await.ended().await.code(), Some(0));
    assert_eq!(proxy.metric("buildkit_lb_upstream_errors_total", &[]), 0.0);
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_metadata_stays_repeated() {
    let (daemon, _proxy, client) = one().await;
    let method = "x-docker-expose-session-grpc-method";
    let headers = [
        ("x-docker-expose-session-uuid", "s"),
        (method, "/a/A"),
        (method, "/b/B"),
        (method, "/c/C"),
        ("x-docker-expose-session-sharedkey", ""),
        ("x-any-bin", "AP8, x"),
    ];
    let solve = client.solve("r", "s").await;
    let call = client.call("/moby.buildkit.v1.Control/Session", &headers).await;
    let answered = call.answered().await.expect("headers");
    let seen = &daemon.seen("Control/Session")[0].headers;
    let methods: Vec<_> = seen.get_all(method).iter().collect();
    assert_eq!(methods, ["/a/A", "/b/B", "/c/C"]);
    assert_eq!(seen["x-docker-expose-session-sharedkey"], "");
    assert_eq!(seen["x-any-bin"], "AP8, x");
    assert_eq!(seen["te"], "trailers");
    assert!(!seen.contains_key("connection") && !seen.contains_key("via"));
    drop((answered, solve));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_close_is_passed_on_while_the_other_half_goes_on() {
    let (daemon, _proxy, client) = one().await;
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    daemon.on("Control/Session", move |mut stream| {
        let told = told.clone();
        async move {
            let mut out = stream.headers();
            let _ = told.send(stream.read().await);
            // The client has half-closed; the daemon still has something to send.
            for _ in 0..3 {
                let _ = send(&mut out, EMPTY).await;
            }
            let _ = out.send_trailers(trailers(0, ""));
        }
    });
    let solve = client.solve("r", "s").await;
    let mut answered = client.session("s").await.answered().await.expect("headers");
    send(&mut answered.upload, EMPTY).await.expect("sent");
    answered.upload.send_data(Bytes::new(), true).expect("half-closed");
    let read = tokio::time::timeout(WAIT, tells.recv()).await;
    assert_eq!(read.expect("in time"), Some(EMPTY));
    let ended = answered.ended().await;
    assert_eq!((ended.body.len(), ended.code()), (15, Some(0)));
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_come_before_the_first_message() {
    let (daemon, _proxy, client) = one().await;
    daemon.on("Control/Status", |mut stream| async move {
        let mut response = head();
        let now = HeaderValue::from_static("2026-01-01T00:00:00Z");
        response.headers_mut().insert("buildkit-current-timestamp", now);
        let _out = stream.respond.send_response(response, false);
        std::future::pending::<()>().await;
    });
    let solve = client.solve("r", "s").await;
    let status = client.by_ref("Status", "r").await.answered();
    let answered = tokio::time::timeout(WAIT, status).await.expect("in time");
    let headers = answered.expect("headers").headers;
    assert!(headers.contains_key("buildkit-current-timestamp"));
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_method_of_a_known_service_follows_its_ids() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let client = RawClient::connect(&proxy.socket()).await;
    let solve = client.solve("r", "s").await;
    let solved = || fleet.iter().position(|daemon| !daemon.seen("Control/Solve").is_empty());
    eventually("the Solve arrives", WAIT, || (solved().is_some()).then_some(()));
    let home = &fleet[solved().expect("bound")];
    for _ in 0..5 {
        let other = RawClient::connect(&proxy.socket()).await;
        let headers = [("buildkit-controlapi-buildid", "r")];
        let path = "/moby.buildkit.v1.Control/FromTheFuture";
        assert_eq!(other.send(path, &headers, EMPTY).await.ended().await.code(), Some(0));
        assert_eq!(other.bridge("AlsoNew", "r").await.ended().await.code(), Some(0));
        let headers = [("x-docker-expose-session-uuid", "s")];
        let path = "/moby.buildkit.v1.Control/NewSessionCall";
        assert_eq!(other.send(path, &headers, EMPTY).await.ended().await.code(), Some(0));
    }
    for method in ["FromTheFuture", "AlsoNew", "NewSessionCall"] {
        assert_eq!(home.seen(method).len(), 5, "{method}");
    }
    drop(solve);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_the_proxy_does_not_know_go_through() {
    let (daemon, _proxy, client) = one().await;
    let health = client.send("/grpc.health.v1.Health/Check", &[], EMPTY).await.ended().await;
    assert_eq!(health.code(), Some(0));
    daemon.on("/x.Y/Z", |mut stream| async move {
        let mut response = head();
        response.headers_mut().extend(trailers(12, "unknown service x.Y"));
        let _ = stream.respond.send_response(response, true);
    });
    let unknown = client.send("/x.Y/Z", &[], EMPTY).await.ended().await;
    assert_eq!((unknown.code(), unknown.message().as_str()), (Some(12), "unknown service x.Y"));
    assert_eq!(unknown.trailers, HeaderMap::new());
}
