//! `status`, `backends`, `builds` and `queue`: the table, JSON and YAML of each say what `/status.json` says.

use std::collections::BTreeMap;

use buildkit_lb::snapshot::{Backend, Build, QueuedBuild, Snapshot};

use crate::{
    LongBuild, WAIT, printed,
    support::{buildkitd::Buildkitd, eventually, proxy::Proxy},
};

/// A key that would clear the screen, colour what follows, and end its row.
const HOSTILE: &str = "\x1b[2J\x1b[31mred\u{9b}1m\r\nNAME\u{202e}";

/// The rows of a table: each cell by the name of its column.
type Rows = Vec<BTreeMap<String, String>>;

/// Reads a table by the places of the names in its head.
fn rows(table: &str) -> Rows {
    let mut lines = table.lines();
    let head = lines.next().expect("a head");
    let starts: Vec<_> = head
        .char_indices()
        .filter(|(at, char)| *char != ' ' && (*at == 0 || head.as_bytes()[at - 1] == b' '))
        .map(|(at, _char)| at)
        .collect();
    let cell = |line: &str, column: usize| {
        let end = starts.get(column + 1).map_or(line.len(), |end| (*end).min(line.len()));
        let start = starts[column].min(line.len());
        line[start..end].trim_end().to_owned()
    };
    let names: Vec<_> = (0..starts.len()).map(|column| cell(head, column)).collect();
    let row = |line: &str| {
        names.iter().enumerate().map(|(column, name)| (name.clone(), cell(line, column))).collect()
    };
    lines.take_while(|line| !line.is_empty()).map(row).collect()
}

/// The cells of one column.
fn column<'a>(rows: &'a Rows, name: &str) -> Vec<&'a str> {
    rows.iter().map(|row| row[name].as_str()).collect()
}

fn json<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).map_err(|error| format!("{error}: {text}")).expect("JSON")
}

/// A cell without a value is a hyphen.
fn or_hyphen(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("-")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_view_says_what_the_status_says() {
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).args(&["--max-builds", "1"]).start();
    proxy.wait_ready(2, WAIT);
    assert_eq!(printed(&proxy, &["builds"]), "No build runs.\n");
    assert_eq!(printed(&proxy, &["queue", "--output", "json"]), "[]\n");
    let _clients = [HOSTILE, "b", "c"].map(|key| LongBuild::through(&proxy, key));
    let status = || json::<Snapshot>(&proxy.admin("GET", "/status.json").1);
    let now = eventually("two builds run and one waits", WAIT, || {
        Some(status()).filter(|now| now.builds.len() == 2 && now.queue.len() == 1)
    });

    let backends = rows(&printed(&proxy, &["backends"]));
    let listed: Vec<Backend> = json(&printed(&proxy, &["backends", "--output", "json"]));
    assert_eq!(listed, now.backends);
    assert_eq!(column(&backends, "BACKEND"), ["d0", "d1"]);
    for (row, backend) in backends.iter().zip(&listed) {
        assert_eq!(row["STATE"], backend.state);
        assert_eq!(row["BUILDS"], backend.load());
        assert_eq!(row["VERSION"], or_hyphen(backend.buildkit_version.as_deref()));
        assert_eq!((row["ADDRESS"].as_str(), row["ZONE"].as_str()), (&*backend.address, "-"));
    }

    let table = printed(&proxy, &["builds"]);
    let builds: Vec<Build> = json(&printed(&proxy, &["builds", "--output", "json"]));
    assert_eq!(column(&rows(&table), "REF"), refs(&builds), "{table}");
    for (row, build) in rows(&table).iter().zip(&builds) {
        assert_eq!((&row["BACKEND"], &row["WHY"]), (&build.backend, &build.why), "{table}");
        assert_eq!(row["CLIENT"], "127.0.0.1", "{table}");
    }
    let queue = rows(&printed(&proxy, &["queue"]));
    let queued: Vec<QueuedBuild> = json(&printed(&proxy, &["queue", "--output", "json"]));
    assert_eq!(column(&queue, "REF"), [queued[0].r#ref.as_deref().expect("a ref")]);
    assert_eq!((queue[0]["POSITION"].as_str(), &queue[0]["WHY"]), ("1", &queued[0].text));

    let told = printed(&proxy, &["status"]);
    assert!(told.starts_with(&format!("buildkit-lb {} at ", now.version)), "{told}");
    let pools = rows(told.split_once("\n\n").expect("a table").1);
    assert_eq!(pools[0]["POOL"], "default", "{told}");
    assert_eq!((pools[0]["RUNNING"].as_str(), pools[0]["WAITING"].as_str()), ("2", "1"), "{told}");
    assert_eq!((pools[0]["READY"].as_str(), pools[0]["BACKENDS"].as_str()), ("yes", "2/2"));
    let whole: Snapshot = json(&printed(&proxy, &["status", "--output", "json"]));
    assert_eq!((whole.pools.len(), &whole.backends), (1, &now.backends));
    assert_eq!((refs(&whole.builds), whole.queue.len()), (refs(&now.builds), 1));
    let yaml = printed(&proxy, &["backends", "--output", "yaml", "--pool", "default"]);
    let read: Vec<Backend> = serde_saphyr::from_str(&yaml).expect("YAML");
    assert_eq!(read, now.backends);

    hostile_text_stays_text(&proxy);
}

fn refs(builds: &[Build]) -> Vec<&str> {
    builds.iter().map(|build| build.r#ref.as_str()).collect()
}

fn hostile_text_stays_text(proxy: &Proxy) {
    let mut seen = false;
    for command in ["builds", "queue", "status"] {
        for form in ["table", "json", "yaml"] {
            let told = printed(proxy, &[command, "--output", form]);
            seen |= told.contains("red");
            assert!(!told.replace('\n', "").contains(char::is_control), "{told:?}");
            assert!(!told.lines().any(|line| line.starts_with("NAME")), "{told:?}");
        }
    }
    assert!(seen, "the key is shown");
}
