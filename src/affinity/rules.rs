//! Which sources make a key, in which order, and what of a value counts: the `[affinity]` table.

use std::fmt;

use regex::{Regex, RegexBuilder};
use toml::{Table, Value};

use super::{AffinityKey, Facts, sources};

/// Metadata of a Solve in which a gateway in front of the proxy may name the key.
pub const HINT_HEADER: &str = "buildkit-lb-key";

/// Longer patterns are no cut of a name any more.
const MAX_PATTERN_LEN: usize = 1024;

/// Memory of one compiled pattern, in bytes. Matching takes time linear in the value in any case.
const MAX_PATTERN_SIZE: usize = 1 << 20;

/// More rules than sources exist hide a mistake.
const MAX_RULES: usize = 32;

/// Where a key may come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Hint,
    Vcs,
    Context,
    Image,
    CacheRef,
    Client,
    SharedKey,
    Definition,
    /// Any frontend option, by name.
    Opt(String),
}

/// The words of the sources that need no name, in the default order; `client` is not in the default,
/// because agents are new each time or share one address.
const WORDS: [(&str, Source); 8] = [
    ("hint", Source::Hint),
    ("vcs", Source::Vcs),
    ("context", Source::Context),
    ("image", Source::Image),
    ("cache_ref", Source::CacheRef),
    ("client", Source::Client),
    ("shared_key", Source::SharedKey),
    ("definition", Source::Definition),
];

impl Source {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("opt:").filter(|name| !name.is_empty()) {
            return Ok(Self::Opt(name.to_owned()));
        }
        let known = WORDS.iter().find(|(word, _)| *word == text);
        known.map(|(_, source)| source.clone()).ok_or_else(|| {
            let words: Vec<_> = WORDS.iter().map(|(word, _)| *word).collect();
            format!("`{text}` is not one of {} or opt:NAME", words.join(", "))
        })
    }

    /// The word in logs and metrics: a closed set.
    fn label(&self) -> &'static str {
        if let Self::Opt(_) = self {
            return "opt";
        }
        WORDS.iter().find(|(_, source)| source == self).map_or("none", |(word, _)| word)
    }

    fn read(&self, facts: &Facts<'_>) -> Option<String> {
        match self {
            Self::Hint => sources::hint(facts),
            Self::Vcs => sources::vcs(facts),
            Self::Context => sources::context(facts),
            Self::Image => sources::image(facts),
            Self::CacheRef => sources::cache_ref(facts),
            Self::Client => sources::client(facts),
            Self::SharedKey => sources::shared_key(facts),
            Self::Definition => sources::definition(facts),
            Self::Opt(name) => sources::opt(facts, name),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opt(name) => write!(f, "opt:{name}"),
            other => f.write_str(other.label()),
        }
    }
}

/// One source, and what of its value counts.
#[derive(Debug, Clone)]
struct Rule {
    source: Source,
    regex: Option<Regex>,
}

impl Rule {
    fn key(&self, facts: &Facts<'_>) -> Option<String> {
        let value = self.source.read(facts)?;
        let Some(regex) = &self.regex else {
            return Some(value);
        };
        let captures = regex.captures(&value)?;
        let part = captures.get(1).or_else(|| captures.get(0))?;
        Some(part.as_str().to_owned()).filter(|part| !part.is_empty())
    }

    fn pattern(&self) -> Option<&str> {
        self.regex.as_ref().map(Regex::as_str)
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source && self.pattern() == other.pattern()
    }
}

/// The ordered sources: the first that a build has decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// Frontend options that are added to whatever key is found: `target`, `platform`.
    include: Vec<String>,
}

impl Default for Rules {
    fn default() -> Self {
        let default = WORDS.into_iter().filter(|(_, source)| *source != Source::Client);
        let rules = default.map(|(_, source)| Rule { source, regex: None }).collect();
        Self { rules, include: Vec::new() }
    }
}

impl Rules {
    /// The key of a build, or `None` if no source has one.
    pub fn key(&self, facts: &Facts<'_>) -> Option<AffinityKey> {
        let found = |rule: &Rule| Some((rule.key(facts)?, rule.source.label()));
        let (mut key, source) = self.rules.iter().find_map(found)?;
        for name in &self.include {
            if let Some(value) = sources::opt(facts, name) {
                key = format!("{key}@{name}={value}");
            }
        }
        Some(AffinityKey { key, source })
    }

    /// Whether any build's key can be its Session's shared key.
    pub fn read_shared_key(&self) -> bool {
        self.rules.iter().any(|rule| rule.source == Source::SharedKey)
    }

    /// Whether this build's key cannot be told before its Session's shared key is known.
    pub fn waits_for_shared_key(&self, facts: &Facts<'_>) -> bool {
        let decides = |rule: &&Rule| rule.source == Source::SharedKey || rule.key(facts).is_some();
        self.rules.iter().find(decides).is_some_and(|rule| rule.source == Source::SharedKey)
    }

    /// Reads the `[affinity]` table; each problem begins with the key it is about.
    pub fn from_table(table: Table, path: &str, problems: &mut Vec<String>) -> Self {
        let mut rules = Self::default();
        for (key, value) in table {
            let path = format!("{path}.{key}");
            match key.as_str() {
                "sources" => rules.rules = read_sources(value, &path, problems),
                "include" => rules.include = read_include(value, &path, problems),
                _ => problems.push(format!("{path}: unknown key")),
            }
        }
        rules
    }

    /// The table that gives these rules.
    pub fn to_table(&self) -> Table {
        let source = |rule: &Rule| match rule.pattern() {
            None => Value::String(rule.source.to_string()),
            Some(pattern) => Value::Table(Table::from_iter([
                ("from".to_owned(), rule.source.to_string().into()),
                ("regex".to_owned(), pattern.into()),
            ])),
        };
        let sources: Vec<_> = self.rules.iter().map(source).collect();
        Table::from_iter([
            ("sources".to_owned(), Value::Array(sources)),
            ("include".to_owned(), self.include.clone().into()),
        ])
    }
}

fn read_sources(value: Value, path: &str, problems: &mut Vec<String>) -> Vec<Rule> {
    let Value::Array(entries) = value else {
        problems.push(format!("{path}: must be a list of sources"));
        return Vec::new();
    };
    if entries.is_empty() || entries.len() > MAX_RULES {
        problems.push(format!(
            "{path}: must have 1 to {MAX_RULES} sources, found {}; builds without a key are placed by load",
            entries.len()
        ));
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let rule = match read_rule(entry) {
            Ok(rule) => rule,
            Err(problem) => {
                problems.push(format!("{path}: {problem}"));
                continue;
            }
        };
        let hides = |earlier: &&Rule| {
            earlier.source == rule.source && (earlier.regex.is_none() || **earlier == rule)
        };
        if rules.iter().any(|earlier| hides(&earlier)) {
            problems.push(format!(
                "{path}: `{}` stands in the list before and takes every value, so this one never counts",
                rule.source
            ));
        }
        rules.push(rule);
    }
    rules
}

/// `"WORD"` or `{ from = "WORD", regex = "…" }`.
fn read_rule(entry: Value) -> Result<Rule, String> {
    let mut table = match entry {
        Value::String(word) => return Ok(Rule { source: Source::parse(&word)?, regex: None }),
        Value::Table(table) => table,
        other => return Err(format!("must be a string or a table, found {}", other.type_str())),
    };
    let Some(Value::String(from)) = table.remove("from") else {
        return Err("needs `from`, the word of a source".to_owned());
    };
    let source = Source::parse(&from)?;
    let regex = match table.remove("regex") {
        None => None,
        Some(Value::String(pattern)) => Some(compile(&pattern)?),
        Some(_) => return Err("`regex` must be a string".to_owned()),
    };
    match table.keys().next() {
        Some(unknown) => Err(format!("unknown key `{unknown}`")),
        None => Ok(Rule { source, regex }),
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN_LEN {
        return Err(format!("`regex` is longer than {MAX_PATTERN_LEN} bytes"));
    }
    let regex = RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_SIZE)
        .dfa_size_limit(MAX_PATTERN_SIZE)
        .build()
        .map_err(|error| format!("`regex` is not valid: {}", one_line(&error.to_string())))?;
    match regex.captures_len() - 1 {
        0 | 1 => Ok(regex),
        groups => Err(format!(
            "`regex` has {groups} groups: it is not clear which is the key, write (?:…) for the others"
        )),
    }
}

/// A message of many lines that draws where the mistake is, as its last line alone.
fn one_line(message: &str) -> &str {
    message.lines().last().unwrap_or_default().trim_start_matches("error: ")
}

fn read_include(value: Value, path: &str, problems: &mut Vec<String>) -> Vec<String> {
    let names: Vec<String> = match value.try_into() {
        Ok(names) => names,
        Err(_untyped) => {
            problems.push(format!("{path}: must be a list of strings"));
            return Vec::new();
        }
    };
    for (index, name) in names.iter().enumerate() {
        if !["target", "platform"].contains(&name.as_str()) {
            problems.push(format!("{path}[{index}]: `{name}` is not one of target or platform"));
        } else if names[..index].contains(name) {
            problems.push(format!("{path}[{index}]: `{name}` is given twice"));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    fn key(rules: &Rules, request: &SolveRequest) -> Option<(String, &'static str)> {
        rules.key(&Facts::new(request)).map(|key| (key.key, key.source))
    }

    fn rules(text: &str) -> Result<Rules, Vec<String>> {
        let mut problems = Vec::new();
        let table = text.parse().expect("TOML");
        let rules = Rules::from_table(table, "affinity", &mut problems);
        if problems.is_empty() { Ok(rules) } else { Err(problems) }
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
        let rules = rules(r#"sources = ["cache_ref", "image"]"#).expect("valid");
        assert_eq!(key(&rules, &request), Some(("acr.io/cache/app".into(), "cache_ref")));
    }

    #[test]
    fn a_hint_beats_all_and_metadata_beats_options() {
        let request =
            with_opts(&[("vcs:source", "https://h/r"), ("build-arg:BUILDKIT_LB_KEY", "mine")]);
        assert_eq!(key(&Rules::default(), &request), Some(("mine".into(), "hint")));
        let facts = Facts { hint: Some("theirs"), ..Facts::new(&request) };
        assert_eq!(Rules::default().key(&facts).map(|key| key.key), Some("theirs".into()));
    }

    #[test]
    fn the_shared_key_tells_the_directory() {
        let request = with_opts(&[("filename", "Dockerfile")]);
        let of = |shared_key| {
            let facts = Facts { shared_key: Some(shared_key), ..Facts::new(&request) };
            Rules::default().key(&facts).map(|key| (key.key, key.source))
        };
        assert_eq!(of("billing:aa"), Some(("billing".into(), "shared_key")));
        assert_eq!(of("billing:aa"), of("billing:bb"), "a new agent, the same project");
        assert_eq!(of("billing:aa"), of("billing@2:cc"), "Jenkins' second checkout");
        for drawn in ["s:aa", "tmp.Xk3:aa", "0f9c2d1e7ab4:aa", "work:aa", "17:aa", ":aa", ""] {
            assert_eq!(of(drawn), None, "{drawn}");
        }
        assert!(Rules::default().waits_for_shared_key(&Facts::new(&request)));
        assert!(!Rules::default().waits_for_shared_key(&Facts::new(&image("a"))));
    }

    #[test]
    fn a_definition_tells_its_repositories_or_itself() {
        use prost::Message as _;

        use crate::wire::llb::{Definition, Op, SourceOp};
        let request = |identifiers: &[&'static str]| {
            let op = |identifier: &&'static str| {
                let source = SourceOp { identifier: (*identifier).into() };
                Op { source: Some(source) }.encode_to_vec().into()
            };
            let definition = Definition { def: identifiers.iter().map(op).collect() };
            SolveRequest { definition: definition.encode_to_vec().into(), ..Default::default() }
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
        let rules = rules(
            r#"sources = [{ from = "image", regex = '^team-a/(.+)-(?:dev|prod)$' }, "opt:project"]
               include = ["target"]"#,
        )
        .expect("valid");
        let cut = key(&rules, &image("acr.io/team-a/app-dev:1"));
        assert_eq!(cut, Some(("app".into(), "image")));
        assert_eq!(cut, key(&rules, &image("acr.io/team-a/app-prod:9")));
        let request = SolveRequest {
            frontend_attrs: attrs(&[("project", "p"), ("target", "test")]),
            ..image("acr.io/team-b/app:1")
        };
        assert_eq!(key(&rules, &request), Some(("p@target=test".into(), "opt")));
        assert_eq!(rules.to_table().to_string().parse().ok(), Some(rules.to_table()));
    }

    #[test]
    fn what_is_wrong_with_rules_is_named_with_its_key() {
        let long = format!(r#"sources = [{{ from = "vcs", regex = "{}" }}]"#, "a".repeat(2000));
        for (text, problem) in [
            (r#"sources = ["vcs", "Image"]"#, "affinity.sources[1]: `Image` is not one of"),
            (r#"sources = []"#, "affinity.sources: must have 1 to 32 sources"),
            (r#"sources = "vcs""#, "affinity.sources: must be a list"),
            (
                r#"sources = ["vcs", { from = "vcs", regex = "a" }]"#,
                "affinity.sources[1]: `vcs` stands",
            ),
            (
                r#"sources = [{ from = "vcs", regex = "(" }]"#,
                "affinity.sources[0]: `regex` is not valid: unclosed group",
            ),
            (
                r#"sources = [{ from = "vcs", regex = "(a)(b)" }]"#,
                "affinity.sources[0]: `regex` has 2 groups",
            ),
            (
                r#"sources = [{ from = "vcs", regex = "(?:(?:(?:a{100}){100}){100})" }]"#,
                "affinity.sources[0]: `regex` is not valid",
            ),
            (&long, "affinity.sources[0]: `regex` is longer than"),
            (r#"sources = [{ regex = "a" }]"#, "affinity.sources[0]: needs `from`"),
            (
                r#"sources = [{ from = "vcs", cut = "a" }]"#,
                "affinity.sources[0]: unknown key `cut`",
            ),
            (r#"include = ["tag"]"#, "affinity.include[0]: `tag` is not one of"),
            (r#"include = ["target", "target"]"#, "affinity.include[1]: `target` is given twice"),
            (r#"order = []"#, "affinity.order: unknown key"),
        ] {
            let problems = rules(text).expect_err(text);
            assert!(problems[0].starts_with(problem), "{problems:?}");
        }
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
            let facts = Facts { shared_key: Some(&shared_key), ..Facts::new(&request) };
            let _ = Rules::default().key(&facts);
            let all = WORDS.map(|(_, source)| source);
            for source in all {
                let _ = source.read(&facts);
            }
        }
    }
}
