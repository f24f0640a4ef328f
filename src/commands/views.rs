//! The tables of the commands, made from a snapshot.

use std::time::Duration;

use super::output::{Flags, lines};
use crate::{
    snapshot::{Backend, Build, EndedBuild, QueuedBuild, Snapshot, Source, Time, brief},
    terminal::{Bytes, Cell, Style, Table, printable},
};

/// What of a snapshot is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Status,
    Backends,
    Builds,
    Recent,
    Queue,
}

/// The flags of `builds`.
#[derive(Debug, clap::Args)]
pub struct Builds {
    /// Print the builds that ended last, the newest first.
    #[arg(long)]
    recent: bool,
    #[command(flatten)]
    pub(super) flags: Flags,
}

impl Builds {
    pub(super) fn view(&self) -> View {
        if self.recent { View::Recent } else { View::Builds }
    }
}

impl View {
    /// The lines of the view.
    pub(super) fn lines(self, snapshot: &Snapshot, colours: bool) -> Vec<String> {
        match self {
            Self::Status => status(snapshot, colours),
            Self::Backends => lines(&backends(snapshot), "There is no backend.", colours, None),
            Self::Builds => lines(&builds(snapshot), "No build runs.", colours, None),
            Self::Recent => lines(&recent(snapshot), "No build has ended.", colours, None),
            Self::Queue => lines(&queue(snapshot), "No build waits.", colours, None),
        }
    }
}

fn status(snapshot: &Snapshot, colours: bool) -> Vec<String> {
    let mut all =
        vec![format!("buildkit-lb {} at {}", printable(&snapshot.version), snapshot.time)];
    all.extend(warnings(snapshot, colours));
    let certificates = certificates(snapshot);
    for (table, nothing) in [
        (pools(snapshot), "There is no pool."),
        (sources(snapshot), "There is no source of backends."),
        (certificates, "The proxy has no certificate."),
    ] {
        all.push(String::new());
        all.extend(lines(&table, nothing, colours, None));
    }
    all
}

/// A line for each warning.
pub(super) fn warnings(snapshot: &Snapshot, colours: bool) -> Vec<String> {
    let warnings = snapshot.warnings.iter();
    let line = |text: &String| Style::Doubtful.paint(&format!("! {}", printable(text)), colours);
    warnings.map(|warning| line(&warning.text)).collect()
}

fn pools(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(["POOL", "POLICY", "READY", "BACKENDS", "RUNNING", "WAITING"]);
    for pool in &snapshot.pools {
        let own = snapshot.backends.iter().filter(|backend| backend.pool == pool.name);
        let ready = own.clone().filter(|backend| backend.state == "ready").count();
        table.push(vec![
            Cell::new(&pool.name),
            Cell::new(&pool.policy),
            match pool.ready {
                true => Cell::new("yes").styled(Style::Good),
                false => Cell::new("no").styled(Style::Bad),
            },
            Cell::new(format!("{ready}/{}", own.count())),
            Cell::new(pool.running.to_string()),
            Cell::new(pool.waiting.to_string()),
        ]);
    }
    table
}

fn sources(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(["POOL", "SOURCE", "ENDPOINTS", "SYNCED", "ERROR"]);
    for Source { pool, source, endpoints, last_sync, error, .. } in &snapshot.discovery {
        table.push(vec![
            Cell::new(pool),
            Cell::new(source),
            Cell::new(endpoints.to_string()),
            Cell::of(last_sync.map(|synced| synced.to_string())),
            Cell::of(error.as_ref()).styled(Style::Bad),
        ]);
    }
    table
}

fn certificates(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(["POOL", "SIDE", "EXPIRES", "LEFT"]);
    for certificate in &snapshot.certificates {
        let left = certificate.expires.since(snapshot.time);
        table.push(vec![
            Cell::new(&certificate.pool),
            Cell::new(&certificate.side),
            Cell::new(certificate.expires.to_string()),
            Cell::new(compact(left)),
        ]);
    }
    table
}

/// The backends of the snapshot. The pool is named only if there are several.
pub(super) fn backends(snapshot: &Snapshot) -> Table {
    let head =
        ["BACKEND", "STATE", "SINCE", "BUILDS", "VERSION", "ZONE", "NODE", "ADDRESS", "CAUSE"];
    let mut rows = Rows::new(snapshot, head);
    for backend in &snapshot.backends {
        let Backend { name, since, buildkit_version, zone, node, address, cause, .. } = backend;
        rows.push(
            &backend.pool,
            vec![
                Cell::new(name),
                Cell::new(&backend.state).styled(style(&backend.state)),
                Cell::new(age(snapshot, *since)),
                Cell::new(backend.load()),
                Cell::of(buildkit_version.as_ref()),
                Cell::of(zone.as_ref()),
                Cell::of(node.as_ref()),
                Cell::new(address),
                Cell::of(cause.as_ref()),
            ],
        );
    }
    rows.table
}

/// The running builds of the snapshot.
pub(super) fn builds(snapshot: &Snapshot) -> Table {
    let head = ["REF", "KEY", "CLIENT", "BACKEND", "TIME", "UP", "DOWN", "WHY"];
    let mut rows = Rows::new(snapshot, head);
    for build in &snapshot.builds {
        let Build { r#ref, key, backend, why, seconds, bytes_up, bytes_down, .. } = build;
        rows.push(
            &build.pool,
            vec![
                Cell::new(r#ref),
                Cell::new(key),
                client(build.identity.as_deref(), build.client.as_deref()),
                Cell::new(backend),
                Cell::new(compact(Duration::from_secs(*seconds))),
                Cell::new(Bytes(*bytes_up).to_string()),
                Cell::new(Bytes(*bytes_down).to_string()),
                Cell::new(why),
            ],
        );
    }
    rows.table
}

/// The builds that ended last.
fn recent(snapshot: &Snapshot) -> Table {
    let head = ["REF", "KEY", "CLIENT", "BACKEND", "ENDED", "TIME", "RESULT", "WHY"];
    let mut rows = Rows::new(snapshot, head);
    for recent in &snapshot.recent {
        let EndedBuild { build, ended, duration_ms, code } = recent;
        let result = if recent.is_ok() { Style::Good } else { Style::Bad };
        rows.push(
            &build.pool,
            vec![
                Cell::new(&build.r#ref),
                Cell::new(&build.key),
                client(build.identity.as_deref(), build.client.as_deref()),
                Cell::new(&build.backend),
                Cell::new(ended.to_string()),
                Cell::new(compact(Duration::from_millis(*duration_ms))),
                Cell::new(code).styled(result),
                Cell::new(&build.why),
            ],
        );
    }
    rows.table
}

/// The waiting builds of the snapshot.
pub(super) fn queue(snapshot: &Snapshot) -> Table {
    let mut rows = Rows::new(snapshot, ["POSITION", "REF", "KEY", "CLIENT", "WAITING", "WHY"]);
    for build in &snapshot.queue {
        let QueuedBuild { position, r#ref, key, seconds, text, .. } = build;
        rows.push(
            &build.pool,
            vec![
                Cell::new(position.to_string()),
                Cell::of(r#ref.as_ref()),
                Cell::new(key),
                client(build.identity.as_deref(), build.client.as_deref()),
                Cell::new(compact(Duration::from_secs(*seconds))),
                Cell::new(text),
            ],
        );
    }
    rows.table
}

/// A table whose first column is the pool, if the snapshot has several.
struct Rows {
    table: Table,
    pools: bool,
}

impl Rows {
    fn new<'a>(snapshot: &Snapshot, head: impl IntoIterator<Item = &'a str>) -> Self {
        let pools = snapshot.pools.len() > 1;
        let pool = pools.then_some("POOL");
        Self { table: Table::new(pool.into_iter().chain(head)), pools }
    }

    fn push(&mut self, pool: &str, row: Vec<Cell>) {
        let pool = self.pools.then(|| Cell::new(pool));
        self.table.push(pool.into_iter().chain(row).collect());
    }
}

/// The name of a client, or its address if it has none.
fn client(identity: Option<&str>, address: Option<&str>) -> Cell {
    Cell::of(identity.or(address))
}

fn style(state: &str) -> Style {
    match state {
        "ready" => Style::Good,
        "unhealthy" | "lost" => Style::Bad,
        _ => Style::Doubtful,
    }
}

/// The time from `moment` to the snapshot, by the clock of the proxy.
fn age(snapshot: &Snapshot, moment: Time) -> String {
    compact(snapshot.time.since(moment))
}

/// A duration without spaces, so that it is one word of its row.
fn compact(duration: Duration) -> String {
    brief(duration).replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Certificate, Pool};

    fn pool(name: &str) -> Pool {
        Pool { name: name.to_owned(), ready: true, ..Pool::default() }
    }

    #[test]
    fn an_empty_proxy_is_told_in_sentences() {
        let snapshot = Snapshot { version: "1\x1b[2J".to_owned(), ..Snapshot::default() };
        let told = View::Status.lines(&snapshot, true).join("\n");
        assert!(told.starts_with("buildkit-lb 1\\u{1b}[2J at 1970-01-01T00:00:00Z\n"), "{told}");
        assert!(told.ends_with("The proxy has no certificate."), "{told}");
        assert_eq!(View::Builds.lines(&snapshot, true), ["No build runs."]);
    }

    #[test]
    fn what_is_foreign_stays_in_its_cell() {
        let evil = "k\x1b]0;owned\x07\n\u{202e}".to_owned();
        let snapshot = Snapshot {
            pools: vec![pool("p"), pool("q")],
            warnings: vec![crate::snapshot::Warning { text: evil.clone(), ..Default::default() }],
            certificates: vec![Certificate { side: evil.clone(), ..Certificate::default() }],
            discovery: vec![Source { error: Some(evil.clone()), ..Source::default() }],
            backends: vec![Backend {
                name: evil.clone(),
                state: evil.clone(),
                cause: Some(evil.clone()),
                buildkit_version: Some(evil.clone()),
                zone: Some(evil.clone()),
                ..Backend::default()
            }],
            builds: vec![Build {
                r#ref: evil.clone(),
                key: evil.clone(),
                identity: Some(evil.clone()),
                why: evil.clone(),
                ..Build::default()
            }],
            queue: vec![QueuedBuild {
                r#ref: Some(evil.clone()),
                key: evil,
                ..QueuedBuild::default()
            }],
            ..Snapshot::default()
        };
        for (view, count) in
            [(View::Status, 12), (View::Backends, 2), (View::Builds, 2), (View::Queue, 2)]
        {
            let shown = view.lines(&snapshot, false);
            assert_eq!(shown.len(), count, "{view:?}: {shown:#?}");
            assert!(!shown.concat().contains(char::is_control), "{view:?}: {shown:#?}");
        }
        assert!(View::Queue.lines(&snapshot, false)[0].starts_with("POOL  POSITION  REF"));
    }
}
