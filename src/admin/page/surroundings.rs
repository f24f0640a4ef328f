//! What the builds depend on: pools, sources of discovery, certificates. And what somebody should look at.

use maud::{Markup, html};

use super::{
    fleet::state,
    table,
    words::{clock, coarse, foreign},
};
use crate::snapshot::{Certificate, Pool, Snapshot, Source};

/// The warnings. Nothing if there are none.
pub(super) fn warnings(snapshot: &Snapshot) -> Markup {
    html! {
        @if !snapshot.warnings.is_empty() {
            section.card.warnings id="warnings" aria-labelledby="warnings-title" {
                h2 id="warnings-title" { "Warnings" span.count { (snapshot.warnings.len()) } }
                ul { @for warning in snapshot.warnings.iter().take(table::MAX_ROWS) { li { (foreign(&warning.text)) } } }
            }
        }
    }
}

/// The pools.
pub(super) fn pools(snapshot: &Snapshot) -> Markup {
    let columns = vec![("Pool", ""), ("State", ""), ("Running", "number"), ("Waiting", "number")];
    let rows: Vec<_> = snapshot.pools.iter().map(pool_row).collect();
    table::card(("pools", "Pools"), &columns, &rows, "There is no pool.")
}

fn pool_row(pool: &Pool) -> Markup {
    html! {
        tr data-key={ "pool " (pool.name) } {
            th scope="row" { (foreign(&pool.name)) span.below { (foreign(&pool.policy)) } }
            td { @if pool.ready { (state("ready")) } @else { span.state.bad { "no ready backend" } } }
            td.number { (pool.running) }
            td.number { (pool.waiting) @if pool.max_waiting > 0 { " of " (pool.max_waiting) } }
        }
    }
}

/// The sources of discovery.
pub(super) fn discovery(snapshot: &Snapshot) -> Markup {
    let columns = vec![("Source", ""), ("Endpoints", "number"), ("Report", "")];
    let rows: Vec<_> =
        snapshot.discovery.iter().map(|source| source_row(snapshot, source)).collect();
    table::card(("discovery", "Discovery"), &columns, &rows, "There is no source.")
}

fn source_row(snapshot: &Snapshot, source: &Source) -> Markup {
    html! {
        tr data-key={ "source " (source.pool) " " (source.source) } {
            th.text scope="row" {
                (foreign(&source.source))
                @if snapshot.pools.len() > 1 { span.below { "pool " (foreign(&source.pool)) } }
            }
            td.number { (source.endpoints) }
            td.text {
                @match (&source.error, source.last_sync) {
                    (Some(error), _) => {
                        span.state.bad { "fails" }
                        @if let Some(since) = source.error_since {
                            span.below { "for " (coarse(snapshot.time.since(since))) }
                        }
                        span.below { (foreign(error)) }
                    }
                    (None, Some(_synced)) => span.state.good { "up to date" },
                    (None, None) => span.dull { "fixed" },
                }
            }
        }
    }
}

/// The certificates that the proxy shows. Nothing if it shows none.
pub(super) fn certificates(snapshot: &Snapshot) -> Markup {
    let columns = vec![("Shown to", ""), ("Expires", ""), ("In", "number")];
    let rows: Vec<_> = snapshot
        .certificates
        .iter()
        .map(|certificate| certificate_row(snapshot, certificate))
        .collect();
    table::card(("certificates", "Certificates"), &columns, &rows, "The proxy uses no TLS.")
}

fn certificate_row(snapshot: &Snapshot, certificate: &Certificate) -> Markup {
    let left = certificate.expires.since(snapshot.time);
    let day = certificate.expires.to_string();
    html! {
        tr data-key={ "certificate " (certificate.pool) " " (certificate.side) } {
            th scope="row" {
                (foreign(&certificate.side))
                @if snapshot.pools.len() > 1 { span.below { "pool " (foreign(&certificate.pool)) } }
            }
            td.short { (day.split('T').next().unwrap_or_default()) " " (clock(certificate.expires)) }
            td.number { @if left.is_zero() { span.state.bad { "expired" } } @else { (coarse(left)) } }
        }
    }
}
