use std::time::{Duration, SystemTime};

use super::*;

fn at(seconds: u64) -> Time {
    (SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).into()
}

fn pool(name: &str) -> Pool {
    Pool { name: name.to_owned(), ready: true, max_waiting: 2, ..Pool::default() }
}

fn backend(name: &str, state: &str, version: &str) -> Backend {
    Backend {
        pool: "p".to_owned(),
        name: name.to_owned(),
        state: state.to_owned(),
        since: at(1_000_000),
        buildkit_version: Some(version.to_owned()),
        ..Backend::default()
    }
}

#[test]
fn a_snapshot_of_another_version_is_read() {
    let newer = r#"{"version":"9","new":{"a":1},"builds":[{"ref":"r","colour":"red"}]}"#;
    let read: Snapshot = serde_json::from_str(newer).expect("read");
    assert_eq!((read.version.as_str(), read.builds[0].r#ref.as_str()), ("9", "r"));
    let odd = r#"{"time":"soon"}"#;
    assert!(serde_json::from_str::<Snapshot>(odd).is_err());
}

#[test]
fn a_snapshot_is_written_as_it_is_read() {
    let snapshot = Snapshot {
        time: at(1_000_000),
        backends: vec![backend("b", "ready", "v1")],
        builds: vec![Build { limit: Some(4), ..Build::default() }],
        queue: vec![QueuedBuild { position: 1, ..QueuedBuild::default() }],
        drain: Some(Drain { builds: 1, connections: 2 }),
        ..Snapshot::default()
    }
    .with_warnings();
    let text = serde_json::to_string(&snapshot).expect("JSON");
    assert!(text.contains(r#""since":"1970-01-12T13:46:40Z""#), "{text}");
    assert_eq!(serde_json::from_str::<Snapshot>(&text).expect("read"), snapshot);
}

/// The kinds of the warnings, and their text as one.
fn warned(snapshot: Snapshot) -> (Vec<String>, String) {
    let warnings = snapshot.with_warnings().warnings;
    let text = warnings.iter().map(|warning| format!("{}\n", warning.text)).collect();
    (warnings.into_iter().map(|warning| warning.kind).collect(), text)
}

#[test]
fn a_healthy_proxy_warns_of_nothing() {
    let certificate =
        Certificate { pool: "p".to_owned(), side: "client".to_owned(), expires: at(90_000_000) };
    let source = Source { pool: "p".to_owned(), endpoints: 1, ..Source::default() };
    let (kinds, text) = warned(Snapshot {
        time: at(1_000_000),
        pools: vec![pool("p")],
        discovery: vec![source],
        certificates: vec![certificate],
        backends: vec![backend("a", "ready", "v1"), backend("b", "cordoned", "v1")],
        ..Snapshot::default()
    });
    assert!(kinds.is_empty(), "{text}");
}

#[test]
fn everything_that_needs_somebody_is_a_sentence() {
    let certificate = |side: &str, expires| Certificate {
        pool: "p".to_owned(),
        side: side.to_owned(),
        expires: at(expires),
    };
    let source = |name: &str, stale| Source {
        pool: "p".to_owned(),
        source: name.to_owned(),
        error: Some("refused".to_owned()),
        error_since: Some(at(1_000_000)),
        stale,
        ..Source::default()
    };
    let cause = Some("no space left".to_owned());
    let (kinds, text) = warned(Snapshot {
        time: at(1_000_090),
        drain: Some(Drain { builds: 3, connections: 4 }),
        log_records_dropped: 7,
        pools: vec![
            Pool { ready: false, waiting: 2, ..pool("p") },
            Pool { ready: false, max_waiting: 0, ..pool("q") },
        ],
        discovery: vec![source("dns://a:1", true), source("dns://b:1", false)],
        certificates: vec![certificate("client", 1_000_000), certificate("admin", 1_086_490)],
        backends: vec![
            Backend { cause, ..backend("a", "degraded", "v1") },
            backend("b", "unhealthy", "v2"),
            backend("c", "lost", "v2"),
        ],
        ..Snapshot::default()
    });
    let expected = [
        "draining",
        "no_ready_backend",
        "no_ready_backend",
        "backend_degraded",
        "backend_unhealthy",
        "backend_lost",
        "source_failing",
        "source_empty",
        "certificate_expired",
        "certificate_expires_soon",
        "queue_full",
        "versions_differ",
        "log_records_dropped",
    ];
    assert_eq!(kinds, expected, "{text}");
    for sentence in [
        "The proxy drains: it waits for 3 builds and 4 connections, and ends then.",
        "Pool p has no ready backend, so 2 builds wait for one.",
        "Pool q has no backend, so builds fail.",
        "Backend a has been degraded for 1m 30s: no space left.",
        "Source dns://a:1 has failed since 1970-01-12T13:46:40Z, and its backends stay as they are: refused.",
        "The certificate of pool p on the admin side expires in 1day, at 1970-01-13T13:48:10Z.",
        "The daemons of pool p have different versions: v1, v2.",
    ] {
        assert!(text.contains(sentence), "{sentence} is not in {text}");
    }
}

#[test]
fn one_pool_is_shown_without_the_others() {
    let snapshot = Snapshot {
        pools: vec![pool("p"), Pool { ready: false, ..pool("q") }],
        backends: vec![backend("a", "ready", "v1")],
        log_records_dropped: 1,
        ..Snapshot::default()
    }
    .with_warnings();
    let (p, q) = (snapshot.clone().of_pool("p"), snapshot.of_pool("q"));
    assert_eq!((p.pools.len(), p.backends.len(), p.warnings.len()), (1, 1, 1));
    assert_eq!((q.pools.len(), q.backends.len(), q.warnings.len()), (1, 0, 2));
}
