//! What a configuration may be, and what is said of one that may not.

use std::time::Duration;

use proptest::{collection::vec, prelude::*, sample::select};

use clap::{Args as _, Command, FromArgMatches as _};

use super::*;
use crate::policy::{LoadFactor, PolicyKind};

/// The configuration of a file and of flags such as `--policy=random`.
fn load(file: &str, flags: &[&str]) -> Result<Config, Problems> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("buildkit-lb.toml");
    std::fs::write(&path, file).expect("written");
    let command = Given::augment_args(Command::new("test").no_binary_name(true));
    let matches = command.try_get_matches_from(flags).expect("flags");
    Config::load(Some(&path), Given::from_arg_matches(&matches).expect("flags"))
}

#[test]
fn one_backend_is_all_it_needs() {
    let config = load("", &["--backend=tcp://b:1234"]).expect("valid");
    assert_eq!(config.pools[0].policy, PolicyKind::ConsistentHash);
    assert_eq!(&*config.pools[0].backend[0].name, "b:1234");
    assert_eq!(config.pools[0].listen[0].to_string(), "tcp://0.0.0.0:1234");
}

#[test]
fn a_flag_wins_over_the_file() {
    let file = "policy = 'random'\nbackend = ['a=tcp://x:1', 'b=unix:///s']\nmax-connections = 7";
    let config = load(file, &["--policy=least-builds"]).expect("valid");
    assert_eq!(config.pools[0].policy, PolicyKind::LeastBuilds);
    assert_eq!(
        (config.pools[0].backend.len(), config.process.max_connections.map(Count::get)),
        (2, Some(7))
    );
}

#[test]
fn the_old_name_of_least_builds_is_still_read() {
    let file = "policy = 'least-sessions'\nbackend = ['a=tcp://x:1']";
    let config = load(file, &[]).expect("valid");
    assert_eq!(config.pools[0].policy, PolicyKind::LeastBuilds);
    assert!(config.to_toml().contains("policy = \"least-builds\""), "{}", config.to_toml());
}

#[test]
fn rules_for_the_names_of_clients_are_read_and_printed() {
    let file =
        "[[identity]]\nfrom = 'dns'\nregex = '(.*)\\.example'\n[[identity]]\nfrom = 'common-name'";
    let config = load(file, &["--backend=tcp://b:1234"]).expect("valid");
    assert_ne!(config.identities, identity::Rules::default());
    assert_eq!(load(&config.to_toml(), &[]), Ok(config));
    let problems = load("identity = [{ from = 'x' }]", &["--backend=b:1"]).expect_err("invalid");
    assert!(problems.to_string().starts_with("identity[0]: `x` is not one of"), "{problems}");
}

#[test]
fn daemons_are_named_or_found() {
    let Problems(problems) = load("", &[]).expect_err("invalid");
    assert!(problems[0].starts_with("backend: at least one"), "{problems:?}");
    let config = load("discover = 'kubernetes://b/s'", &[]).expect("valid");
    assert_eq!(config.pools[0].discover, ["kubernetes://b/s".parse().expect("valid")]);
    assert_eq!(load(&config.to_toml(), &[]), Ok(config));
    let file = "discover = ['consul://x', 'kubernetes://b/s', 'kubernetes://b/s']";
    let Problems(problems) = load(file, &[]).expect_err("invalid");
    assert_eq!(problems.len(), 2, "{problems:?}");
}

#[test]
fn every_problem_is_told_in_one_run() {
    let file = "polcy = 'x'\npolicy = 'best'\nlisten = 3\ndrain-timeout = 'soon'\ndrain-delay = '-1s'\n\
                backend = ['tcp://a', 'a=tcp://x:1', 'a=tcp://x:1', 'c=tcp://x:2?capacity=0']\nmax-connections = 0\n\
                admin-listen = 'nowhere'\nscaler-listen = 'here'\ncontrol-listen = 'tcp://0.0.0.0:9091'\nadmin-token-file = '/no/such'\nlog-level = true\nspread-bake-targets = 1\nslow-start = 'fast'\nprobation = 'never'\npod-details = 'all'\n\
                consistent-hash = { load-factor = 0.8, bound = 2 }\n\
                warm-memory = { enabled = 'yes', max-keys = 0, ttl = 'ever' }\n\
                affinity = { sources = ['path'] }";
    let Problems(problems) = load(file, &[]).expect_err("invalid");
    for key in [
        "polcy: unknown",
        "policy: `best`",
        "listen: must",
        "drain-timeout: `soon`",
        "drain-delay: `-1s`",
        "backend: port is missing",
        "backend: the name `a`",
        "backend: the address",
        "max-connections: `0`",
        "admin-listen: port is missing or not a number from 0 to 65535 in `nowhere`",
        "control-listen: `tcp://0.0.0.0:9091` is neither",
        "scaler-listen: port is missing",
        "admin-token-file: cannot read `/no/such`",
        "log-level: must",
        "backend: `0` is not a number from 1 to 10000",
        "spread-bake-targets: must",
        "pod-details: must",
        "slow-start: `fast`",
        "probation: `never`",
        "consistent-hash.load-factor: `0.8`",
        "consistent-hash.bound: unknown",
        "warm-memory.enabled: must",
        "warm-memory.max-keys: `0`",
        "warm-memory.ttl: `ever`",
        "affinity.sources[0]: `path`",
    ] {
        assert!(problems.iter().any(|problem| problem.starts_with(key)), "{key}: {problems:#?}");
    }
}

#[test]
fn one_port_cannot_serve_both() {
    let flags = ["--backend=tcp://b:1", "--listen=0.0.0.0:9090"];
    let Problems(problems) = load("", &flags).expect_err("invalid");
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn a_capacity_stands_behind_the_address() {
    for text in ["b:1?capacity=4", "n=tcp://b:1?capacity=4", "unix:///s?capacity=4"] {
        let config = load("", &[&format!("--backend={text}")]).expect("valid");
        assert_eq!(config.pools[0].backend[0].capacity.get(), 4, "{text}");
        assert!(!config.pools[0].backend[0].name.contains('?'), "{text}");
    }
}

#[test]
fn what_is_printed_reads_back() {
    let tokens = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(tokens.path(), "0123456789abcdef0123456789abcdef").expect("written");
    let tokens = format!("--admin-token-file={}", tokens.path().display());
    let flags = [
        "--backend=b=tcp://[::1]:1?capacity=3",
        "--drain-timeout=90s",
        "--scaler-listen=0.0.0.0:9093",
        &tokens,
        "--control-listen=tcp://[::1]:9091",
        "--drain-delay=15s",
        "--pod-details",
        "--safe-to-evict=true",
        "--slow-start=0s",
        "--spread-bake-targets",
    ];
    let file = "consistent-hash.load-factor = 'off'\n\
                warm-memory = { enabled = false, max-keys = 5, ttl = '1h' }";
    let config = load(file, &flags).expect("valid");
    assert_eq!(config.pools[0].policy().load_factor, LoadFactor::OFF);
    assert!(!config.pools[0].warm().enabled && config.process.pod_details);
    assert_eq!(load(&config.to_toml(), &[]), Ok(config));
}

#[test]
fn pools_have_their_own_addresses_and_what_they_do_not_say_is_common() {
    let file = "policy = 'least-builds'\nslow-start = '5s'\nprobation = '9s'\n\
                [[pool]]\nname = 'amd64'\nlisten = 'tcp://0.0.0.0:1'\nbackend = 'tcp://a:1'\n\
                policy = 'consistent-hash'\nconsistent-hash.load-factor = 2\n\
                affinity.sources = ['image']\n\
                [[pool]]\nname = 'arm64'\nlisten = ['tcp://0.0.0.0:2', 'unix:///s']\n\
                discover = 'kubernetes://b/arm'";
    let config = load(file, &[]).expect("valid");
    let [five, nine] = [5, 9].map(|seconds| Span(Duration::from_secs(seconds)));
    let [amd, arm] = config.pools.as_slice() else { panic!("{config:?}") };
    assert_eq!((amd.name.as_str(), arm.name.as_str()), ("amd64", "arm64"));
    assert_eq!(amd.policy, PolicyKind::ConsistentHash);
    assert_eq!(arm.policy, PolicyKind::LeastBuilds);
    assert_eq!((amd.slow_start, arm.slow_start), (five, five));
    assert_eq!((amd.probation, arm.probation), (nine, nine));
    assert_eq!((arm.listen.len(), arm.discover.len()), (2, 1));
    assert_ne!(amd.affinity, arm.affinity);
    assert_eq!(load(&config.to_toml(), &[]), Ok(config));
}

#[test]
fn what_is_wrong_with_pools_is_told_by_pool() {
    let file = "policy = 'best'\nbackend = 'tcp://x:1'\n\
                [[pool]]\nname = 'a b'\nlisten = 'tcp://0.0.0.0:9090'\nbackend = 'tcp://a'\n\
                [[pool]]\nname = 'c'\nbackend = 'tcp://a:1'\nslow-start = 'soon'\nadmin-listen = 'x'\n\
                [[pool]]\nname = 'c'\nlisten = 'tcp://0.0.0.0:9090'\naffinity.sources = ['path']";
    let Problems(problems) = load(file, &[]).expect_err("invalid");
    for key in [
        "policy: `best`",
        "backend: move this into a [[pool]]",
        "pool[0].name: `a b`",
        "pool[0].backend: port is missing",
        "pool[1].listen: is needed",
        "pool[1].slow-start: `soon`",
        "pool[1].admin-listen: unknown",
        "pool[2].name: `c` is given twice",
        "pool[2].listen: `tcp://0.0.0.0:9090` is given twice",
        "pool[2].backend: at least one",
        "pool[2].affinity.sources[0]: `path`",
        "admin-listen: `0.0.0.0:9090` is also an address for clients",
    ] {
        let told = problems.iter().filter(|problem| problem.starts_with(key)).count();
        let most = if key.starts_with("admin") { 2 } else { 1 };
        assert!((1..=most).contains(&told), "{key}: {problems:#?}");
    }
    let Problems(problems) = load("pool = 'x'", &[]).expect_err("invalid");
    assert!(problems[0].starts_with("pool: must be a list"), "{problems:?}");
}

#[test]
fn a_problem_tells_where_its_key_was_given() {
    let file = "policy = 'best'\nslow-start = 'soon'\n\n[warm-memory]\nttl = 'ever'\nsize = 1\n\
                [[pool]]\nname = 'a'\nlisten = 'tcp://0.0.0.0:1'\nbackend = ['b:1', 'b:1']\n\
                max-waiting = 0\n[[pool]]\nname = 'b'\ndiscover = 'dns://b:1'";
    let Problems(problems) = load(file, &["--slow-start=later"]).expect_err("invalid");
    for (key, origin) in [
        ("policy: `best`", "buildkit-lb.toml:1)"),
        ("slow-start: `later`", "(--slow-start)"),
        ("warm-memory.ttl: `ever`", "buildkit-lb.toml:5)"),
        ("warm-memory.size: unknown", "buildkit-lb.toml:6)"),
        ("pool[0].backend: the name", "buildkit-lb.toml:10)"),
        ("pool[0].max-waiting: `0`", "buildkit-lb.toml:11)"),
        ("pool[1].listen: is needed", "buildkit-lb.toml:12)"),
    ] {
        let told: Vec<_> = problems.iter().filter(|problem| problem.starts_with(key)).collect();
        assert!(matches!(told[..], [told] if told.ends_with(origin)), "{key}: {problems:#?}");
    }
}

#[test]
fn a_file_of_tls_hides_those_of_the_layer_below() {
    let file = "tls-dir = '/below'\ntls-client-auth = 'off'";
    let flags = ["--backend=b:1", "--tls-cert=/above.crt"];
    let Problems(problems) = load(file, &flags).expect_err("invalid");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("tls-cert: cannot read `/above.crt`"), "{problems:?}");
    let file = "tls-dir = '/below'\n[[pool]]\nname = 'p'\nlisten = ':::1'\nbackend = 'b:1'\ntls-key = '/own'";
    let Problems(problems) = load(file, &[]).expect_err("invalid");
    assert!(
        problems.iter().any(|problem| problem.starts_with("pool[0].tls-key: ")),
        "{problems:?}"
    );
    assert!(!problems.iter().any(|problem| problem.contains("/below")), "{problems:?}");
}

#[test]
fn an_empty_list_is_no_list() {
    let file = "listen = []\nproxy-protocol-from = ['10.0.0.0/8']\n\
                [[pool]]\nname = 'p'\nlisten = '[::]:1'\nbackend = 'b:1'\nproxy-protocol-from = []";
    let config = load(file, &[]).expect("valid");
    assert_eq!(config.pools[0].proxy_protocol_from.len(), 1);
    let Problems(problems) = load("backend = []", &[]).expect_err("invalid");
    assert!(problems[0].starts_with("backend: at least one"), "{problems:?}");
}

#[test]
fn more_wrong_values_than_anybody_reads_are_cut_off() {
    let wrong = (0..1000).map(|number| format!("'no{number}'")).collect::<Vec<_>>().join(",");
    let Problems(problems) = load(&format!("backend = [{wrong}]"), &[]).expect_err("invalid");
    assert_eq!(problems.len(), 100);
}

#[test]
fn a_backend_has_a_name_that_can_be_shown() {
    let refused = |text: &str| {
        let Problems(problems) = load("", &[&format!("--backend={text}")]).expect_err(text);
        assert!(problems[0].starts_with("backend: ") && problems[0].len() < 2000, "{problems:?}");
        assert!(!problems[0].contains(char::is_control), "{problems:?}");
    };
    let long = "n".repeat(100_000);
    for name in ["a\nb", "a/b", "a b", "ä", "a\"b", &long] {
        refused(&format!("{name}=tcp://b:1"));
    }
    for address in
        ["tcp://a\nb:1", "tcp://a/b:1", &format!("tcp://{long}:1"), &format!("unix:///{long}")]
    {
        refused(address);
        refused(&format!("name={address}"));
    }
    for text in ["unix:///run/b.sock", "tcp://[::1]:1", "pod-0.b.svc:1234", "a_b-c.d:1=tcp://b:1"] {
        let config = load("", &[&format!("--backend={text}")]).expect(text);
        assert_eq!(load(&config.to_toml(), &[]), Ok(config), "{text}");
    }
}

#[test]
fn a_name_is_not_looked_up_before_it_is_used() {
    let flags = [
        "--backend=tcp://no-such-host.invalid:1",
        "--admin-listen=no-such-host.invalid:1",
        "--dns-server=no-such-host.invalid:1",
    ];
    let config = load("", &flags).expect("valid");
    assert_eq!(load(&config.to_toml(), &[]), Ok(config));
}

/// The keys of a file, and of some of its tables.
fn keys() -> Vec<String> {
    let command = Given::augment_args(Command::new("test"));
    let flags = command.get_arguments().filter_map(|flag| flag.get_long().map(str::to_owned));
    let others = [
        "pool",
        "identity",
        "access",
        "affinity",
        "consistent-hash",
        "warm-memory",
        "sources",
        "load-factor",
        "ttl",
    ];
    flags.chain(others.map(str::to_owned)).collect()
}

fn values() -> impl Strategy<Value = toml::Value> {
    let words =
        ["tcp://a:1", "a=unix:///s", "10m", "random", "text", "", "kubernetes://a/b", "a\nb"];
    let leaf = prop_oneof![
        any::<bool>().prop_map(toml::Value::from),
        any::<i64>().prop_map(toml::Value::from),
        any::<f64>().prop_map(toml::Value::from),
        ".{0,40}".prop_map(toml::Value::from),
        select(words.to_vec()).prop_map(toml::Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let entry = (select(keys()), inner.clone());
        prop_oneof![
            vec(inner, 0..4).prop_map(toml::Value::Array),
            vec(entry, 0..4).prop_map(|entries| {
                let entries = entries.into_iter();
                toml::Value::Table(entries.collect())
            }),
        ]
    })
}

fn problems_of(file: &str) -> Vec<String> {
    load(file, &[]).map_or_else(|Problems(problems)| problems, |_config| Vec::new())
}

proptest! {
    /// Settings of any type and value: no panic, and each problem begins with a key that is set, or with
    /// one that is needed.
    #[test]
    fn every_problem_names_its_key(settings in vec((select(keys()), values()), 0..6)) {
        let table: toml::Table =
            settings.into_iter().collect();
        for problem in problems_of(&table.to_string()) {
            let (path, text) = problem.split_once(": ").expect("a key and a problem");
            let key = path.split(['.', '[']).next().unwrap_or_default();
            let needed = ["backend", "listen", "admin-listen"].contains(&key);
            prop_assert!(table.contains_key(key) || needed, "{}", problem);
            prop_assert!(!text.is_empty() && !problem.contains(char::is_control), "{}", problem);
        }
    }

    /// Any bytes at all.
    #[test]
    fn no_file_makes_it_panic(file in prop_oneof![".{0,200}", "([a-z-]{1,12} = ['\"]?[a-z0-9:/=]{0,20}['\"]?\n){0,4}"]) {
        for problem in problems_of(&file) {
            prop_assert!(problem.contains(": ") && !problem.contains('\n'), "{}", problem);
        }
    }
}
