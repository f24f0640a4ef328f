//! The backends, and the figures above everything else.

use maud::{Markup, html};

use super::{
    table::{self, Columns},
    words::{coarse, foreign},
};
use crate::snapshot::{Backend, Snapshot};

/// The few figures that say how the proxy is.
pub(super) fn tiles(snapshot: &Snapshot) -> Markup {
    let ready = snapshot.backends.iter().filter(|backend| backend.state == "ready").count();
    let slots: Option<u64> = snapshot.backends.iter().map(|backend| backend.slots).sum();
    let running: usize = snapshot.pools.iter().map(|pool| pool.running).sum();
    let known = || snapshot.recent.iter().filter_map(|ended| ended.build.warm);
    let (warm, keyed) = (known().filter(|warm| *warm).count(), known().count());
    let failed = snapshot.recent.iter().filter(|ended| !ended.is_ok()).count();
    html! {
        dl.tiles id="figures" {
            (tile("Backends ready", &html! { (ready) " " small { "of " (snapshot.backends.len()) } }))
            (tile("Builds running", &html! {
                (running)
                @if let Some(slots) = slots.filter(|slots| *slots > 0) { " " small { "of " (slots) " slots" } }
            }))
            (tile("Builds waiting", &html! { (snapshot.queue.len()) }))
            (tile("Found their cache", &html! {
                @match percent(warm, keyed) {
                    Some(percent) => { (percent) " % " small { "of " (keyed) " recent" } }
                    None => small { "no recent build with a key" },
                }
            }))
            (tile("Failed", &html! { span class=[(failed > 0).then_some("bad")] { (failed) } " " small { "of " (snapshot.recent.len()) " recent" } }))
        }
    }
}

fn tile(name: &str, value: &Markup) -> Markup {
    html! { div { dt { (name) } dd { (value) } } }
}

/// The share of `part` in `whole`, in percent. `None` if there is nothing.
pub(super) fn percent(part: usize, whole: usize) -> Option<usize> {
    (part * 200 + whole).checked_div(whole * 2)
}

/// The backends.
pub(super) fn fleet(snapshot: &Snapshot) -> Markup {
    let several = snapshot.pools.len() > 1;
    let mut columns: Columns = vec![
        ("Backend", ""),
        ("State", ""),
        ("Builds of slots", ""),
        ("BuildKit", ""),
        ("Zone", ""),
    ];
    if several {
        columns.insert(1, ("Pool", ""));
    }
    let read = snapshot.backends.iter().any(|backend| backend.steps_total.is_some());
    if read {
        columns.push(("Cached steps", ""));
    }
    let rows: Vec<_> =
        snapshot.backends.iter().map(|backend| row(snapshot, backend, several, read)).collect();
    let empty = "No backend is known. “Discovery” says what the sources report.";
    table::card(("fleet", "Fleet"), &columns, &rows, empty)
}

fn row(snapshot: &Snapshot, backend: &Backend, several: bool, read: bool) -> Markup {
    let since = coarse(snapshot.time.since(backend.since));
    html! {
        tr data-key={ "backend " (backend.pool) " " (backend.name) } {
            th scope="row" { (foreign(&backend.name)) span.below { (foreign(&backend.address)) } }
            @if several { td { (foreign(&backend.pool)) } }
            td.text {
                (state(&backend.state))
                span.below {
                    "for " (since)
                    @if let Some(seconds) = backend.probation_seconds {
                        ", probation ends in " (coarse(std::time::Duration::from_secs(seconds)))
                    }
                }
                @if let Some(cause) = &backend.cause { span.below { (foreign(cause)) } }
            }
            td.short { (load(backend)) (backend.load()) }
            td.short {
                (foreign(backend.buildkit_version.as_deref().unwrap_or("not known yet")))
                @if let Some(version) = &backend.version { span.below { "pod " (foreign(version)) } }
            }
            td {
                (foreign(backend.zone.as_deref().unwrap_or("–")))
                @if let Some(node) = &backend.node { span.below { (foreign(node)) } }
            }
            @if read { td.short { (cached(backend)) } }
        }
    }
}

/// The share of a backend's steps that were in its cache.
fn cached(backend: &Backend) -> Markup {
    match (backend.cached_percent(), backend.steps_total) {
        (Some(percent), Some(total)) => html! { (percent) " %" span.below { "of " (total) } },
        _ => html! { "–" },
    }
}

/// The state of a backend, with a colour that says how bad it is.
pub(super) fn state(state: &str) -> Markup {
    let class = match state {
        "ready" => "good",
        "degraded" => "warn",
        "unhealthy" | "lost" => "bad",
        _ => "calm",
    };
    html! { span class={ "state " (class) } { (foreign(state)) } }
}

/// A bar for the taken slots. It says nothing that the figure beside it does not.
pub(super) fn load(backend: &Backend) -> Markup {
    let Some(slots) = backend.slots.filter(|slots| *slots > 0) else { return html! {} };
    let width = (u64::from(backend.builds) * 64).div_ceil(slots).min(64);
    html! {
        svg.load viewBox="0 0 64 8" preserveAspectRatio="none" aria-hidden="true" {
            rect.back width="64" height="8" {}
            rect.fill width=(width) height="8" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded() {
        assert_eq!(
            [percent(1, 3), percent(2, 3), percent(0, 0), percent(3, 3)],
            [Some(33), Some(67), None, Some(100)]
        );
    }
}
