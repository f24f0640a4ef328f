use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::wire::control::{Attr, CacheOptions, CacheOptionsEntry, Exporter, SolveRequest};

fn attrs(pairs: &[(&str, &str)]) -> Vec<Attr> {
    let attr = |(key, value): &(&str, &str)| Attr {
        key: (*key).to_owned().into(),
        value: (*value).to_owned().into(),
    };
    pairs.iter().map(attr).collect()
}

fn with_opts(pairs: &[(&str, &str)]) -> SolveRequest {
    SolveRequest { frontend_attrs: attrs(pairs), ..Default::default() }
}

fn image(name: &str) -> SolveRequest {
    let exporter = Exporter { r#type: "image".into(), attrs: attrs(&[("name", name)]) };
    SolveRequest { exporters: vec![exporter], ..Default::default() }
}

fn facts(request: &SolveRequest, rules: &Rules) -> Facts {
    Facts::read(&request.encode_to_vec(), rules).expect("valid")
}

fn key(rules: &Rules, request: &SolveRequest) -> Option<(String, &'static str)> {
    rules.key(&facts(request, rules)).map(|key| (key.key, key.source))
}

/// The rules of these sources.
fn rules(sources: &[Source]) -> Rules {
    Rules { rules: sources.iter().cloned().map(Rule::all).collect(), include: Vec::new() }
}

#[test]
fn two_jobs_of_one_project_have_one_key() {
    for url in [
        "https://org@dev.azure.com/org/proj/_git/app",
        "https://DEV.azure.com/org/proj/_git/app",
        "https://token:x@dev.azure.com/org/proj/_git/app.git",
        "git@ssh.dev.azure.com:v3/org/proj/app",
    ] {
        let request = with_opts(&[
            ("vcs:source", url),
            ("vcs:revision", url),
            ("vcs:localdir:context", "."),
            ("vcs:localdir:dockerfile", "/agent/_work/7/s"),
            ("build-arg:VERSION", url),
        ]);
        let expected = ("dev.azure.com/org/proj/_git/app".to_owned(), "vcs");
        assert_eq!(key(&Rules::default(), &request), Some(expected));
    }
}

#[test]
fn parts_of_a_monorepo_differ() {
    let at = |directory| {
        let request =
            with_opts(&[("vcs:source", "https://h/r"), ("vcs:localdir:dockerfile", directory)]);
        key(&Rules::default(), &request)
    };
    assert_eq!(at("./services/a/"), Some(("h/r#services/a".into(), "vcs")));
    assert_eq!(at("services\\a"), at("services/a"));
    assert_ne!(at("services/a"), at("services/b"));
}

#[test]
fn a_git_context_drops_its_revision() {
    let key = |context| key(&Rules::default(), &with_opts(&[("context", context)]));
    assert_eq!(key("https://h/team/app.git#main:sub"), key("https://h/team/app#v2:sub"));
    assert_ne!(key("https://h/team/app.git#main"), key("https://h/team/other.git#main"));
    assert_eq!(key("input:0-b"), None);
}

#[test]
fn the_image_comes_before_the_cache_unless_told_otherwise() {
    let entry = CacheOptionsEntry {
        r#type: "registry".into(),
        attrs: attrs(&[("ref", "acr.io/cache/app:main")]),
    };
    let cache = CacheOptions { imports: vec![entry], ..Default::default() };
    let request = SolveRequest { cache: Some(cache), ..image("b.io/x:1,acr.io/app:17") };
    assert_eq!(key(&Rules::default(), &request), Some(("app".into(), "image")));
    let rules = rules(&[Source::CacheRef, Source::Image]);
    assert_eq!(key(&rules, &request), Some(("acr.io/cache/app".into(), "cache_ref")));
}

#[test]
fn a_hint_beats_all_and_metadata_beats_options() {
    let request =
        with_opts(&[("vcs:source", "https://h/r"), ("build-arg:BUILDKIT_LB_KEY", "mine")]);
    assert_eq!(key(&Rules::default(), &request), Some(("mine".into(), "hint")));
    let facts = Facts { hint: Some("theirs".into()), ..facts(&request, &Rules::default()) };
    assert_eq!(Rules::default().key(&facts).map(|key| key.key), Some("theirs".into()));
}

#[test]
fn the_shared_key_tells_the_directory() {
    let request = with_opts(&[("filename", "Dockerfile")]);
    let of = |shared_key: &str| {
        let facts =
            Facts { shared_key: Some(shared_key.into()), ..facts(&request, &Rules::default()) };
        Rules::default().key(&facts).map(|key| (key.key, key.source))
    };
    assert_eq!(of("billing:aa"), Some(("billing".into(), "shared_key")));
    assert_eq!(of("billing:aa"), of("billing:bb"), "a new agent, the same project");
    assert_eq!(of("billing:aa"), of("billing@2:cc"), "Jenkins' second checkout");
    for drawn in ["s:aa", "tmp.Xk3:aa", "0f9c2d1e7ab4:aa", "work:aa", "17:aa", ":aa", ""] {
        assert_eq!(of(drawn), None, "{drawn}");
    }
    assert!(Rules::default().waits_for_shared_key(&facts(&request, &Rules::default())));
    assert!(!Rules::default().waits_for_shared_key(&facts(&image("a"), &Rules::default())));
}

#[test]
fn a_definition_tells_its_repositories_or_itself() {
    let within = |number: u8, inner: &[u8]| {
        [&[number << 3 | 2, u8::try_from(inner.len()).expect("short")], inner].concat()
    };
    // Definition.def, Op.source, SourceOp.identifier.
    let op = |identifier: &&str| within(1, &within(3, &within(1, identifier.as_bytes())));
    let request = |identifiers: &[&'static str]| SolveRequest {
        definition: identifiers.iter().map(op).collect::<Vec<_>>().concat().into(),
        ..Default::default()
    };
    let of = |identifiers: &[&'static str]| key(&Rules::default(), &request(identifiers));
    let git = of(&["docker-image://golang:1", "git://github.com/team/app.git#v1"]);
    assert_eq!(git, Some(("github.com/team/app".into(), "definition")));
    let plain = of(&["docker-image://golang:1"]);
    assert_eq!(plain, of(&["docker-image://golang:1"]));
    assert_ne!(plain, of(&["docker-image://golang:2"]));
    assert_eq!(of(&[]), None);
    assert_eq!(of(&["local://a", "docker-image://b"]), of(&["docker-image://b", "local://a"]));
    let gateway = |source| key(&Rules::default(), &with_opts(&[("source", source)]));
    assert_eq!(gateway("docker/dockerfile:1"), None, "every project has this");
    assert_eq!(gateway("r.io/buildpacks:2"), Some(("r.io/buildpacks()".into(), "definition")));
}

#[test]
fn a_regex_cuts_and_passes_over_what_does_not_match() {
    let table = r#"from = "image"
        regex = '^team-a/(.+)-(?:dev|prod)$'"#;
    let kind = rules::Kind { from: "a source", finds: "key", matches_all: false };
    let image_rule = Rule::read(table.parse().expect("TOML"), &kind, Source::parse).expect("valid");
    let project = Rule::all(Source::Opt("project".to_owned()));
    let rules = Rules { rules: vec![image_rule, project], include: vec!["target".to_owned()] };
    let cut = key(&rules, &image("acr.io/team-a/app-dev:1"));
    assert_eq!(cut, Some(("app".into(), "image")));
    assert_eq!(cut, key(&rules, &image("acr.io/team-a/app-prod:9")));
    let request = SolveRequest {
        frontend_attrs: attrs(&[("project", "p"), ("target", "test")]),
        ..image("acr.io/team-b/app:1")
    };
    assert_eq!(key(&rules, &request), Some(("p@target=test".into(), "opt")));
}

proptest! {
    #[test]
    fn any_value_gives_a_key_or_none(
        values in prop::collection::vec(any::<Vec<u8>>(), 6),
        definition: Vec<u8>,
        shared_key: String,
    ) {
        let names =
            ["vcs:source", "context", "vcs:localdir:context", "filename", "target", "source"];
        let attr = |(name, value): (&str, Vec<u8>)| Attr {
            key: name.to_owned().into(),
            value: value.into(),
        };
        let request = SolveRequest {
            frontend_attrs: names.into_iter().zip(values).map(attr).collect(),
            definition: definition.into(),
            ..Default::default()
        };
        let facts = Facts { shared_key: Some(shared_key), ..facts(&request, &Rules::default()) };
        let _ = Rules::default().key(&facts);
        let all = WORDS.map(|(_, source)| source);
        for source in all {
            let _ = source.read(&facts);
        }
    }
}
