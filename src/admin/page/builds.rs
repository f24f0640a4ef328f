//! The builds that wait, run or have ended.

use std::time::Duration;

use maud::{Markup, html};

use super::{
    table::{self, Columns},
    words::{build_link, bytes, coarse, foreign, precise, span},
};
use crate::snapshot::{Build, EndedBuild, QueuedBuild, Snapshot};

/// The builds that wait, the next one first.
pub(super) fn queue(snapshot: &Snapshot) -> Markup {
    let several = snapshot.pools.len() > 1;
    let columns = with_pool(
        several,
        vec![
            ("Place", "number"),
            ("Build", ""),
            ("Client", ""),
            ("Waiting for", "number"),
            ("Why", ""),
        ],
    );
    let rows: Vec<_> = snapshot.queue.iter().map(|build| queued_row(build, several)).collect();
    table::card(("queue", "Queue"), &columns, &rows, "No build waits.")
}

fn queued_row(build: &QueuedBuild, several: bool) -> Markup {
    html! {
        tr data-key={ "queued " (build.pool) " " (build.r#ref.as_deref().unwrap_or_default()) " " (build.since) } {
            td.number { (build.position) }
            @if several { td { (foreign(&build.pool)) } }
            th.text scope="row" { (named(&build.key, build.r#ref.as_deref().unwrap_or_default())) }
            td { (client(build.client.as_deref(), build.identity.as_deref())) }
            td.number { (span(Duration::from_secs(build.seconds))) }
            td.text { (foreign(&build.text)) }
        }
    }
}

/// The running builds. The probes of clients build nothing and are left out.
pub(super) fn running(snapshot: &Snapshot) -> Markup {
    let several = snapshot.pools.len() > 1;
    let columns = with_pool(
        several,
        vec![
            ("Build", ""),
            ("Client", ""),
            ("Backend", ""),
            ("Why there", ""),
            ("Elapsed", "number"),
            ("Up", "number"),
            ("Down", "number"),
        ],
    );
    let builds = snapshot.builds.iter().filter(|build| !build.internal);
    let rows: Vec<_> = builds.map(|build| running_row(build, several)).collect();
    table::card(("running", "Running builds"), &columns, &rows, "No build runs.")
}

fn running_row(build: &Build, several: bool) -> Markup {
    html! {
        tr data-key={ "running " (build.pool) " " (build.r#ref) " " (build.arrived) } {
            th.text scope="row" { (named(&build.key, &build.r#ref)) }
            @if several { td { (foreign(&build.pool)) } }
            td { (client(build.client.as_deref(), build.identity.as_deref())) }
            td { (foreign(&build.backend)) }
            td.text { (foreign(&build.why)) }
            td.number { (span(Duration::from_secs(build.seconds))) }
            td.number { (bytes(build.bytes_up)) }
            td.number { (bytes(build.bytes_down)) }
        }
    }
}

/// The builds that have ended, the latest first.
pub(super) fn recent(snapshot: &Snapshot) -> Markup {
    let several = snapshot.pools.len() > 1;
    let columns = with_pool(
        several,
        vec![
            ("Build", ""),
            ("Result", ""),
            ("Backend", ""),
            ("Cache", ""),
            ("Took", "number"),
            ("Ended", "number"),
        ],
    );
    let rows: Vec<_> =
        snapshot.recent.iter().map(|ended| ended_row(snapshot, ended, several)).collect();
    let empty = "No build has ended lately, or the proxy keeps none (--recent-builds).";
    table::card(("recent", "Recent builds"), &columns, &rows, empty)
}

fn ended_row(snapshot: &Snapshot, ended: &EndedBuild, several: bool) -> Markup {
    let build = &ended.build;
    html! {
        tr data-key={ "ended " (build.pool) " " (build.r#ref) " " (ended.ended) " " (build.arrived) } {
            th.text scope="row" { (named(&build.key, &build.r#ref)) }
            @if several { td { (foreign(&build.pool)) } }
            td { (result(&ended.code)) }
            td { (foreign(&build.backend)) }
            td { (cache(build)) }
            td.number { (precise(Duration::from_millis(ended.duration_ms))) }
            td.number { (coarse(snapshot.time.since(ended.ended))) " ago" }
        }
    }
}

/// How a build ended, by its gRPC code.
pub(super) fn result(code: &str) -> Markup {
    let (class, word) = match code {
        "OK" => ("good", "done"),
        "Cancelled" => ("dull", "cancelled"),
        _ => ("bad", "failed"),
    };
    html! {
        span class={ "state " (class) } { (word) }
        @if class == "bad" { span.below { (foreign(code)) } }
    }
}

/// Whether the backend had the cache of the build's key.
pub(super) fn cache(build: &Build) -> Markup {
    let (class, word) = match build.warm {
        Some(true) => ("good", "warm"),
        Some(false) => ("dull", "cold"),
        None => ("dull", "–"),
    };
    html! { span class=(class) { (word) } span.below { (foreign(&build.outcome)) } }
}

/// What a build is of: its key, and its ref as a link.
fn named(key: &str, r#ref: &str) -> Markup {
    html! {
        @if key.is_empty() { span.dull { "no key" } } @else { (foreign(key)) }
        span.below { (build_link(r#ref)) }
    }
}

/// Who a client is: its name, and its address.
pub(super) fn client(address: Option<&str>, identity: Option<&str>) -> Markup {
    let address = address.unwrap_or("Unix socket");
    html! {
        @match identity {
            Some(identity) => { (foreign(identity)) span.below { (foreign(address)) } }
            None => (foreign(address)),
        }
    }
}

/// `columns`, with that of the pool after the build if there are several pools.
fn with_pool(several: bool, mut columns: Columns) -> Columns {
    if several {
        columns.insert(1, ("Pool", ""));
    }
    columns
}
