use serde_json::Value;

use super::*;
use crate::snapshot::{
    Backend, Build, Certificate, EndedBuild, Pool, QueuedBuild, Source, Time, Warning,
};

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// A snapshot with one of everything, in `pools` pools.
fn full(pools: usize) -> Snapshot {
    let build = || Build {
        r#ref: "x".to_owned(),
        key: "x".to_owned(),
        client: some("x"),
        identity: some("x"),
        queue_wait_ms: Some(1),
        queue_cause: some("x"),
        warm: Some(true),
        limit: Some(4),
        ..Build::default()
    };
    let backend = Backend {
        cause: some("x"),
        probation_seconds: Some(1),
        buildkit_version: some("x"),
        slots: Some(2),
        zone: some("x"),
        node: some("x"),
        version: some("x"),
        ..Backend::default()
    };
    let source = Source { error: some("x"), error_since: Some(Time::now()), ..Source::default() };
    let queued = QueuedBuild {
        r#ref: some("x"),
        client: some("x"),
        identity: some("x"),
        key: "x".to_owned(),
        ..QueuedBuild::default()
    };
    Snapshot {
        time: Time::now(),
        warnings: vec![Warning::default()],
        pools: vec![
            Pool {
                placements: [("home".to_owned(), vec![1; 60])].into(),
                ..Pool::default()
            };
            pools
        ],
        discovery: vec![source],
        certificates: vec![Certificate::default()],
        backends: vec![backend],
        builds: vec![build()],
        recent: vec![EndedBuild { build: build(), ..EndedBuild::default() }],
        queue: vec![queued],
        ..Snapshot::default()
    }
}

/// Puts `text` in the place of every text of `value`. Times stay.
fn fill(value: &mut Value, text: &str) {
    match value {
        Value::String(own) if serde_json::from_value::<Time>(own.as_str().into()).is_err() => {
            text.clone_into(own);
        }
        Value::Array(values) => values.iter_mut().for_each(|value| fill(value, text)),
        Value::Object(fields) => fields.values_mut().for_each(|value| fill(value, text)),
        _ => {}
    }
}

/// Both pages of a snapshot in which every text is `text`.
fn pages(text: &str) -> [String; 2] {
    let mut value = serde_json::to_value(full(2)).expect("JSON");
    fill(&mut value, text);
    let snapshot: Snapshot = serde_json::from_value(value).expect("a snapshot");
    let own = build::builds(&snapshot, text, &|_pool, _key| vec![text.to_owned()]);
    let own = own.expect("it has the ref");
    [home(&snapshot), frame(&snapshot, &shown(text), &own)].map(Markup::into_string)
}

/// The tags of a page, each with the names of its attributes.
fn tags(page: &str) -> Vec<String> {
    let tag = regex::Regex::new(r"<[^>]*>").expect("valid");
    let value = regex::Regex::new(r#""[^"]*""#).expect("valid");
    tag.find_iter(page).map(|tag| value.replace_all(tag.as_str(), "").into_owned()).collect()
}

/// What a person reads.
fn visible(page: &str) -> String {
    let tag = regex::Regex::new(r"<[^>]*>").expect("valid");
    tag.replace_all(page, "").into_owned()
}

#[test]
fn no_text_from_outside_is_more_than_text() {
    let harmless = pages("x").map(|page| tags(&page));
    assert!(harmless.iter().all(|tags| tags.len() > 100), "{harmless:?}");
    let long = "ä".repeat(8 << 10);
    for text in [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "' onmouseover='alert(1)",
        "</title></style></svg><a href=javascript:alert(1)>",
        "javascript:alert(1)",
        "&lt;script&gt;&#60;b&#62;",
        "../../?a=b#c%00%2e",
        "\u{202e}\u{2066}cba\u{200f}\0\r\n\t\u{7f}",
        &long,
    ] {
        for (page, harmless) in pages(text).iter().zip(&harmless) {
            assert_eq!(&tags(page), harmless, "{text}");
            let visible = visible(page);
            assert!(!visible.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\0']), "{text}");
            assert!(!page.contains("href=\"javascript:"), "{text}");
            assert!(visible.len() < 100_000, "{text}: {} bytes", visible.len());
        }
    }
}

#[test]
fn a_pool_is_named_where_there_are_several() {
    let named = |pools| home(&full(pools)).into_string().matches(">Pool</th>").count();
    // The table of the pools has such a column in any case.
    assert_eq!((named(1), named(2)), (1, 5));
}

#[test]
fn a_quiet_proxy_says_so() {
    let page = home(&Snapshot::default()).into_string();
    for told in
        ["No backend is known.", "No build waits.", "No build runs.", "no recent build with a key"]
    {
        assert!(page.contains(told), "{told} is not in {page}");
    }
    assert!(!page.contains("Warnings"), "{page}");
}

#[test]
fn a_long_table_is_cut_and_says_so() {
    let mut snapshot = full(1);
    snapshot.builds = vec![snapshot.builds[0].clone(); 2 * table::MAX_ROWS];
    let page = home(&snapshot).into_string();
    assert_eq!(page.matches("data-key=\"running ").count(), table::MAX_ROWS);
    assert!(page.contains("The first 500 are shown."), "{page}");
}
