//! The reader of the log, or the lack of one, has no effect on builds.

use std::{fs, path::Path, time::Duration};

use crate::{
    bystander,
    support::{buildkitd::Buildkitd, eventually, proxy::Proxy, raw_client::RawClient},
};

/// Calls that each write a record, many of them on a line of its own.
async fn refused_calls(proxy: &Proxy, count: usize) {
    let client = RawClient::connect(&proxy.socket()).await;
    let no_message = bytes::Bytes::from_static(&[9, 0, 0, 0, 1, b'x']);
    for _ in 0..count {
        let call = client.send("/moby.buildkit.v1.Control/Solve", &[], no_message.clone());
        assert_eq!(call.await.ended().await.marker(), Some("bad_message"));
    }
}

/// Fills the log faster than the calls of [`refused_calls`]: a debug record for each connection.
async fn failed_connections(proxy: &Proxy, count: usize) {
    for _ in 0..count {
        let mut stream = tokio::net::TcpStream::connect(proxy.socket()).await.expect("accepted");
        let bytes = [&b"no HTTP/2 at all, and longer than a preface"[..], &[0; 100]].concat();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &bytes).await.expect("sent");
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut Vec::new()).await;
    }
}

fn dropped(proxy: &Proxy) -> f64 {
    proxy.metric("buildkit_lb_log_records_dropped_total", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_go_on_when_the_reader_of_the_log_goes() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).stderr("2> >(exec head -n 1)").start();
    for _ in 0..2 {
        bystander::builds(&proxy).await;
        refused_calls(&proxy, 100).await;
    }
    bystander::builds(&proxy).await;
    eventually("lost records are counted", Duration::from_secs(10), || {
        (dropped(&proxy) > 0.0).then_some(())
    });
    assert_eq!(proxy.process.log().lines().count(), 1, "the reader has read one line and left");
    assert_eq!(proxy.admin("GET", "/livez").0, 200);
    proxy.process.signal("TERM");
    assert_eq!(proxy.process.wait(Duration::from_secs(10)).code(), Some(0), "it drains as ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_go_on_when_there_is_no_room_for_the_log() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).stderr("2>/dev/full").start();
    refused_calls(&proxy, 100).await;
    bystander::builds(&proxy).await;
    eventually("lost records are counted", Duration::from_secs(10), || {
        (dropped(&proxy) > 0.0).then_some(())
    });
    proxy.process.signal("TERM");
    assert_eq!(proxy.process.wait(Duration::from_secs(10)).code(), Some(0), "it drains as ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_go_on_when_nobody_reads_the_log_and_the_reader_is_told_what_it_has_missed() {
    let directory = tempfile::tempdir().expect("a directory");
    let (go, log) = (directory.path().join("go"), directory.path().join("log"));
    let reader = format!(
        "2> >(until [ -e {go} ]; do sleep 0.1; done; exec cat >{log})",
        go = go.display(),
        log = log.display()
    );
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).args(&["--log-level", "debug"]).stderr(&reader).start();
    refused_calls(&proxy, 2000).await;
    eventually_dropped(&proxy).await;
    bystander::builds(&proxy).await;
    assert_eq!(proxy.admin("GET", "/livez").0, 200);
    fs::write(&go, "").expect("written");
    let told = eventually("the reader is told", Duration::from_secs(20), || {
        let told =
            records(&log).into_iter().find(|fields| fields["message"] == "log records dropped");
        told.and_then(|fields| fields["total"].as_u64())
    });
    assert!(told > 0);
    bystander::builds(&proxy).await;
    eventually("a build is logged again", Duration::from_secs(10), || {
        records(&log).iter().any(|fields| fields["message"] == "build ended").then_some(())
    });
}

/// Writes records until some are dropped.
async fn eventually_dropped(proxy: &Proxy) {
    let mut caused = 0;
    while dropped(proxy) == 0.0 {
        assert!(caused < 20_000, "a pipe that nobody reads has room for 20 000 records");
        failed_connections(proxy, 100).await;
        caused += 100;
    }
}

fn records(log: &Path) -> Vec<serde_json::Value> {
    let log = fs::read_to_string(log).unwrap_or_default();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.map(|record| record["fields"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_calls_are_told_now_and_then_with_how_many_they_were() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    refused_calls(&proxy, 500).await;
    // A record says how many records of its kind were held back before it.
    let told = || proxy.records("stream rejected");
    let held_back = |fields: &serde_json::Value| fields["held_back"].as_u64();
    let calls = || told().iter().filter_map(held_back).map(|held_back| held_back + 1).sum::<u64>();
    let mut later = 0;
    while calls() < 500 {
        later += 1;
        assert!(later < 10_000, "{:?}", told());
        refused_calls(&proxy, 1).await;
    }
    assert!(told().len() < 100, "{} lines for {} calls", told().len(), 500 + later);
    bystander::builds(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_solve_cannot_write_a_long_record() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).args(&["--log-level", "debug"]).start();
    let client = RawClient::connect(&proxy.socket()).await;
    let long = "k".repeat(100_000);
    let attrs = [("build-arg:BUILDKIT_LB_KEY", long.as_str()), ("target", long.as_str())];
    let mut solve = client.solve_with("long", "long", &attrs, &[]).await;
    eventually("the build is placed", Duration::from_secs(10), || {
        (proxy.metric("buildkit_lb_route_decisions_total", &[]) > 0.0).then_some(())
    });
    solve.upload.send_reset(h2::Reason::CANCEL);
    let key = proxy.build("long")["key"].as_str().expect("a key").len();
    assert!(key <= 256, "{key}");
    bystander::builds(&proxy).await;
    let longest = proxy.process.log().lines().map(str::len).max().unwrap_or(0);
    assert!(longest <= 8 << 10, "{longest}");
}
