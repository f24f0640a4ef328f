use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::wire::control::{Attr, CacheOptions, CacheOptionsEntry, Exporter, SolveRequest};

fn read(text: &str) -> Result<Rules, Vec<String>> {
    let mut table: toml::Table = text.parse().expect("TOML");
    let mut problems = Vec::new();
    let rules = Rules::from_value(table.remove("access").expect("access"), "access", &mut problems);
    if problems.is_empty() { Ok(rules) } else { Err(problems) }
}

fn client(name: &str) -> Identity {
    Identity::named(name)
}

#[test]
fn without_rules_all_but_what_is_others_is_allowed() {
    let rules = Rules::default();
    for client in [None, Some(&client("a"))] {
        let grant = rules.grant(client);
        assert!(Operation::ALL.iter().all(|operation| grant.allows(*operation)));
        assert_eq!((grant.history(), grant.content()), (Reach::Own, Reach::Own));
        let everything = asks(
            &["security.insecure"],
            &[exporter("image", &[("push", "true"), ("name", "x")])],
            &[],
        );
        assert_eq!(grant.check_solve(client, &everything), Ok(Ok(())));
    }
    assert_eq!(rules.to_value(), None);
}

#[test]
fn the_first_rule_that_names_a_client_decides_and_nobody_else_may_do_anything() {
    let rules = read(
        "[[access]]\nclients = ['team-a', 'ops-*']\noperations = ['build', 'prune']\nhistory = 'all'\n\
         [[access]]\nclients = ['*']\nmax-builds = 3\nweight = 4\npools = ['small-*']\n",
    )
    .expect("valid");
    let grant = |name| rules.grant(Some(&client(name))).clone();
    assert!(grant("ops-1").allows(Operation::Prune) && grant("ops-1").allows_pool("large"));
    assert_eq!((grant("team-a").history(), grant("team-b").history()), (Reach::All, Reach::Own));
    assert!(grant("team-b").allows(Operation::Build) && !grant("team-b").allows(Operation::Prune));
    assert!(grant("team-b").allows_pool("small-1") && !grant("team-b").allows_pool("large"));
    assert_eq!((grant("team-a").max_builds(), grant("team-b").max_builds()), (None, Some(3)));
    assert_eq!((grant("team-a").weight().get(), grant("team-b").weight().get()), (1, 4));
    assert_eq!((rules.number(Some(&client("x"))), rules.number(None)), (Some(2), None));
    let nobody = rules.grant(None);
    assert!(!nobody.allows_pool("small-1") && !nobody.allows(Operation::Build));
    assert_eq!((nobody.history(), nobody.content()), (Reach::None, Reach::None));
}

#[test]
fn rules_are_checked_and_written_again() {
    let text = "[[access]]\nclients = ['a']\nanonymous = true\noperations = ['disk-usage']\nhistory = 'none'\n\
                content = 'all'\nentitlements = ['network.host']\nexporters = ['local']\ncache-exporters = []\n\
                push = ['r.example/*']\npools = ['x']\nmax-builds = 7\nweight = 5\n[[access]]\nclients = ['*']";
    let rules = read(text).expect("valid");
    let mut problems = Vec::new();
    let again = Rules::from_value(rules.to_value().expect("some"), "access", &mut problems);
    assert_eq!((again, problems), (rules, Vec::new()));
    let wrong = "[[access]]\noperations = ['fly']\nhistory = 'some'\npush = 'x'\nmax-builds = 0\nweight = 101\nclients = ['']\nfoo = 1";
    let problems = read(wrong).expect_err("invalid");
    let told = problems.join("\n");
    for expected in [
        "access[0].operations: `fly` is not one of build, prune, disk-usage",
        "access[0].history: must be one of none, own, all",
        "access[0].push: must be a list of strings",
        "access[0].max-builds: must be a number from 1 to 100000",
        "access[0].weight: must be a number from 1 to 100",
        "access[0].clients: must be text of 1 to 512 bytes",
        "access[0].foo: unknown key",
        "access[0]: names nobody",
    ] {
        assert!(told.contains(expected), "{expected} in\n{told}");
    }
    assert!(
        read("access = 1").is_err()
            && read("access = []").is_err()
            && read("access = [1]").is_err()
    );
}

fn attrs(pairs: &[(&str, &str)]) -> Vec<Attr> {
    let attr = |(key, value): &(&str, &str)| Attr {
        key: (*key).to_owned().into(),
        value: (*value).to_owned().into(),
    };
    pairs.iter().map(attr).collect()
}

fn exporter(kind: &str, pairs: &[(&str, &str)]) -> Exporter {
    Exporter { r#type: kind.to_owned().into(), attrs: attrs(pairs) }
}

/// A SolveRequest with these entitlements, exporters and cache exports.
fn asks(entitlements: &[&str], exporters: &[Exporter], caches: &[(&str, &str)]) -> Vec<u8> {
    let cache = |(kind, reference): &(&str, &str)| CacheOptionsEntry {
        r#type: (*kind).to_owned().into(),
        attrs: attrs(&[("mode", "max"), ("ref", reference)]),
    };
    let exports = caches.iter().map(cache).collect();
    let mut request = SolveRequest {
        exporters: exporters.to_vec(),
        cache: Some(CacheOptions { exports, ..Default::default() }),
        ..Default::default()
    }
    .encode_to_vec();
    for name in entitlements {
        request.extend([9 << 3 | 2, u8::try_from(name.len()).expect("short")]);
        request.extend(name.as_bytes());
    }
    request
}

const STRICT: &str = "[[access]]\nclients = ['*']\nentitlements = ['network.host', 'device=gpu*']\n\
    exporters = ['image', 'local']\ncache-exporters = ['registry', 'inline']\n\
    push = ['r.example/a/*', 'docker.io/library/app']\n";

/// The error of `STRICT` for a request. Empty if the request is allowed.
fn verdict(request: &[u8]) -> String {
    let (rules, client) = (read(STRICT).expect("valid"), client("c"));
    match rules.grant(Some(&client)).check_solve(Some(&client), request).expect("a message") {
        Ok(()) => String::new(),
        Err(denied) => denied.to_string(),
    }
}

#[test]
fn each_kind_of_request_is_allowed_or_refused() {
    let pushes = |name| exporter("image", &[("name", name), ("push", "true")]);
    for (request, expected) in [
        (asks(&["network.host", "device=gpu0,alias=x"], &[], &[]), ""),
        (
            asks(&["network.host", "security.insecure"], &[], &[]),
            "client c may not use the entitlement `security.insecure`",
        ),
        (asks(&["device"], &[], &[]), "client c may not use the entitlement `device`"),
        (asks(&[], &[exporter("local", &[])], &[]), ""),
        (
            asks(&[], &[exporter("local", &[]), exporter("oci", &[])], &[]),
            "client c may not use the exporter `oci`",
        ),
        (asks(&[], &[exporter("", &[])], &[]), "client c may not use the exporter ``"),
        (
            asks(&[], &[pushes("r.example/a/x:1,R.example:443/a/y")], &[]),
            "client c may not push to `r.example:443/a/y`",
        ),
        (asks(&[], &[pushes("r.example/a/x:1, R.Example/a/y@sha256:abc")], &[]), ""),
        (asks(&[], &[pushes("app:1")], &[]), ""),
        (asks(&[], &[pushes("index.docker.io/app")], &[]), ""),
        (asks(&[], &[pushes("team/app")], &[]), "client c may not push to `docker.io/team/app`"),
        (asks(&[], &[pushes("*")], &[]), "client c may not push to `docker.io/library/*`"),
        (
            asks(&[], &[pushes("r.example/b/../a/x")], &[]),
            "client c may not push to `r.example/b/../a/x`",
        ),
        (asks(&[], &[exporter("image", &[("name", "r.example/b"), ("push", "false")])], &[]), ""),
        (
            asks(&[], &[exporter("image", &[("name", "r.example/b"), ("push", "")])], &[]),
            "client c may not push to `r.example/b`",
        ),
        (
            asks(&[], &[exporter("image", &[("push", "true")])], &[]),
            "client c may not push under a name that the Solve does not tell",
        ),
        (asks(&[], &[], &[("registry", "r.example/a/cache"), ("inline", "")]), ""),
        (asks(&[], &[], &[("registry", "r.example/a/cache")]), ""),
        (asks(&[], &[], &[("registry", "r.example/b")]), "client c may not push to `r.example/b`"),
        (
            asks(&[], &[], &[("s3", "r.example/a/x")]),
            "client c may not use the cache exporter `s3`",
        ),
    ] {
        assert_eq!(verdict(&request), expected);
    }
}

#[test]
fn the_one_exporter_of_old_clients_counts_too() {
    let old = |kind: &str, pairs: &[(&str, &str)]| {
        let exporter_attrs_deprecated = attrs(pairs);
        let request = SolveRequest { exporter_attrs_deprecated, ..Default::default() };
        let kind =
            [&[3 << 3 | 2, u8::try_from(kind.len()).expect("short")], kind.as_bytes()].concat();
        [request.encode_to_vec(), kind].concat()
    };
    assert_eq!(verdict(&old("image", &[("name", "r.example/a/x"), ("push", "true")])), "");
    assert_eq!(verdict(&old("", &[("name", "r.example/b"), ("push", "true")])), "");
    let denied = "client c may not push to `r.example/b`";
    assert_eq!(verdict(&old("image", &[("name", "r.example/b"), ("push", "true")])), denied);
    assert_eq!(verdict(&old("tar", &[])), "client c may not use the exporter `tar`");
}

#[test]
fn what_is_told_of_a_request_is_short_and_escaped() {
    let told = verdict(&asks(&["a\nb"], &[], &[]));
    assert_eq!(told, "client c may not use the entitlement `a\\nb`");
    let long = "x".repeat(5000);
    let told = verdict(&asks(&[], &[exporter(&long, &[])], &[]));
    assert!(told.len() < 200, "{told}");
}

proptest! {
    #[test]
    fn any_bytes_are_judged_or_refused(request: Vec<u8>) {
        let rules = read(STRICT).expect("valid");
        let _ = rules.grant(Some(&client("c"))).check_solve(None, &request);
    }

    #[test]
    fn nothing_is_pushed_to_where_no_pattern_fits(
        names in prop::collection::vec("([a-z]{1,4}\\.example/)?[ab]/[a-z]{1,3}(:[0-9])?", 1..4),
    ) {
        let names = names.join(",");
        let request = asks(&[], &[exporter("image", &[("name", &names), ("push", "1")])], &[]);
        let allowed = names.split(',').all(|name| name.starts_with("r.example/a/"));
        prop_assert_eq!(verdict(&request).is_empty(), allowed, "{}", names);
    }
}
