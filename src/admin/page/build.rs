//! The page of one ref: the life of each of its builds, why it is where it is, and what else its key ranks.

use std::time::Duration;

use maud::{Markup, html};

use super::{
    builds::{cache, client, result},
    fleet::{load, state},
    table,
    words::{bytes, clock, foreign, precise, span},
};
use crate::snapshot::{Backend, Build, EndedBuild, QueuedBuild, Snapshot};

/// The most ranks that are shown. A build seldom goes further down.
const MAX_RANKS: usize = 20;

/// The width of a timeline in units of its own.
const WIDTH: u64 = 1000;

/// Finds the order in which the policy of a pool ranks its backends for a key now: `(pool, key)` to their names.
pub(super) type Ranking<'a> = &'a dyn Fn(&str, &str) -> Vec<String>;

/// One build with the ref: where its key belongs, its backend once it has one, and what is told of it.
struct Found<'a> {
    pool: &'a str,
    key: &'a str,
    backend: Option<&'a str>,
    state: Markup,
    told: Markup,
}

/// Every build with this `ref`. Several pools, and several clients with a name, may each have one. `None` if there is
/// no such build.
pub(super) fn builds(snapshot: &Snapshot, r#ref: &str, ranking: Ranking<'_>) -> Option<Markup> {
    let queued = snapshot.queue.iter().filter(|build| build.r#ref.as_deref() == Some(r#ref));
    let running = snapshot.builds.iter().filter(|build| build.r#ref == r#ref);
    let recent = snapshot.recent.iter().filter(|ended| ended.build.r#ref == r#ref);
    let found: Vec<_> =
        queued.map(waits).chain(running.map(runs)).chain(recent.map(ended)).collect();
    (!found.is_empty()).then(|| {
        html! {
            @for (n, found) in (1..).zip(&found) {
                section.card aria-label={ "Build " (n) } { h2 { (found.state) } (found.told) }
                (ranks(found, &format!("ranks-{n}"), ranking, snapshot))
            }
        }
    })
}

/// What the page says if there is no such build.
pub(super) fn nothing(r#ref: &str) -> Markup {
    html! {
        section.card aria-labelledby="nothing" {
            h2 id="nothing" { "No build of this ref" }
            p.note {
                "No build " span.mono { (foreign(r#ref)) } " waits, runs or is among the builds that ended last. The "
                "log has a record of each build that has ended."
            }
        }
    }
}

fn waits(build: &QueuedBuild) -> Found<'_> {
    let waited = Duration::from_secs(build.seconds);
    let told = html! {
        div.pad {
            (timeline(waited, Duration::ZERO, Duration::ZERO))
            ol.steps {
                li { (clock(build.since)) " The build arrived." }
                li {
                    span.at { "now" } " It is number " (build.position) " in the queue and has waited for "
                    (span(waited)) ": " (foreign(&build.text)) "."
                }
            }
        }
        div.pad { dl.facts {
            (fact("Pool", &foreign(&build.pool)))
            (fact("Key", &key_of(&build.key, &build.key_source)))
            (fact("Client", &client(build.client.as_deref(), build.identity.as_deref())))
        } }
    };
    let state = html! { span.state.calm { "waits" } };
    Found { pool: &build.pool, key: &build.key, backend: None, state, told }
}

fn runs(build: &Build) -> Found<'_> {
    let age = Duration::from_secs(build.seconds).max(Duration::from_millis(build.wait_ms));
    let now =
        html! { li { span.at { "now" } " It still runs, " (span(age)) " after it arrived." } };
    let state = html! { span.state.good { "runs" } };
    Found { state, told: life(build, age, &now), ..Found::placed(build) }
}

fn ended(ended: &EndedBuild) -> Found<'_> {
    let (build, took) = (&ended.build, Duration::from_millis(ended.duration_ms));
    let end = html! {
        li { (clock(ended.ended)) " It ended after " (precise(took)) ", with the code " (foreign(&ended.code)) "." }
    };
    Found { state: result(&ended.code), told: life(build, took, &end), ..Found::placed(build) }
}

impl<'a> Found<'a> {
    /// A build on its backend, of which nothing is told yet.
    fn placed(build: &'a Build) -> Self {
        let Build { pool, key, backend, .. } = build;
        Found { pool, key, backend: Some(backend), state: html! {}, told: html! {} }
    }
}

/// The life of a build that has been placed, over `total` until now or its end.
fn life(build: &Build, total: Duration, last: &Markup) -> Markup {
    let placed = Duration::from_millis(build.wait_ms);
    let queued = build.queue_wait_ms.map(Duration::from_millis);
    let waited = queued.unwrap_or_default().min(placed);
    html! {
        div.pad {
            (timeline(waited, placed - waited, total.saturating_sub(placed)))
            ol.steps {
                li { (clock(build.arrived)) " The build arrived." }
                @if let Some(queued) = queued {
                    li { span.at { "+ " (precise(queued)) } " It had waited for its turn: " (cause(build)) "." }
                }
                li {
                    span.at { "+ " (precise(placed)) } " It was placed on " (foreign(&build.backend)) ". "
                    (foreign(&build.why))
                }
                (last)
            }
        }
        div.pad { dl.facts {
            (fact("Pool", &foreign(&build.pool)))
            (fact("Key", &key_of(&build.key, &build.key_source)))
            (fact("Cache", &cache_of(build)))
            (fact("Load at placement", &html! {
                "The backend ran " (build.load) @if let Some(limit) = build.limit { " of at most " (limit) } " builds."
            }))
            (fact("Client", &client(build.client.as_deref(), build.identity.as_deref())))
            (fact("Session", &html! { span.mono { (foreign(&build.session)) } }))
            (fact("Relayed", &html! { (bytes(build.bytes_up)) " up, " (bytes(build.bytes_down)) " down" }))
        } }
    }
}

fn fact(name: &str, value: &Markup) -> Markup {
    html! { dt { (name) } dd { (value) } }
}

fn key_of(key: &str, source: &str) -> Markup {
    html! {
        @if key.is_empty() { "none" } @else { (foreign(key)) span.below { "from " (foreign(source)) } }
    }
}

fn cache_of(build: &Build) -> Markup {
    html! {
        (cache(build))
        span.below {
            @match build.warm {
                Some(true) => "The backend had built the key lately.",
                Some(false) => "The backend had not built the key lately.",
                None => "The proxy does not know, because the build has no key or the policy remembers none.",
            }
        }
    }
}

/// What a build waited for, as the end of a sentence.
fn cause(build: &Build) -> &str {
    match build.queue_cause.as_deref() {
        Some("no_backend") => "no backend was ready",
        Some("busy") => "all slots were taken",
        _ => "no slot was free",
    }
}

/// A bar of three parts: the wait for a turn, the rest of the placement, and the run.
fn timeline(waited: Duration, placing: Duration, ran: Duration) -> Markup {
    let total = (waited + placing + ran).max(Duration::from_millis(1));
    let wide = |part: Duration| {
        let units = part.as_millis() * u128::from(WIDTH) / total.as_millis();
        u64::try_from(units).unwrap_or(WIDTH)
    };
    let label = format!(
        "waited {}, was placed in {}, ran for {}",
        precise(waited),
        precise(placing),
        precise(ran)
    );
    let (first, second) = (wide(waited), wide(placing));
    html! {
        svg.timeline viewBox={ "0 0 " (WIDTH) " 14" } preserveAspectRatio="none" role="img" aria-label=(label) {
            rect.waited width=(first) height="14" {}
            rect.placing x=(first) width=(second) height="14" {}
            rect.ran x=(first + second) width=(WIDTH - (first + second).min(WIDTH)) height="14" {}
        }
    }
}

/// The backends in the order of the policy for the key of a build.
fn ranks(found: &Found<'_>, id: &str, ranking: Ranking<'_>, snapshot: &Snapshot) -> Markup {
    let &Found { pool, key, backend: own, .. } = found;
    let ranked = if key.is_empty() { Vec::new() } else { ranking(pool, key) };
    let backend = |name: &String| {
        let of = snapshot.backends.iter();
        of.filter(|backend| backend.pool == pool).find(|backend| backend.name == *name)
    };
    let shown = ranked.iter().enumerate().filter_map(|(rank, name)| Some((rank, backend(name)?)));
    let shown =
        shown.filter(|(rank, backend)| *rank < MAX_RANKS || own == Some(backend.name.as_str()));
    let rows: Vec<_> =
        shown.map(|(rank, backend)| rank_row(rank, backend, own == Some(&backend.name))).collect();
    let columns = vec![("Rank", "number"), ("Backend", ""), ("State", ""), ("Builds of slots", "")];
    let empty = "No key decides in this pool, so its backends have no ranks for the build.";
    table::card((id, "How the policy ranks the backends for the key now"), &columns, &rows, empty)
}

fn rank_row(rank: usize, backend: &Backend, own: bool) -> Markup {
    html! {
        tr class=[own.then_some("own")] data-key={ "rank " (backend.name) } {
            td.number { (rank) }
            th scope="row" {
                (foreign(&backend.name))
                span.below {
                    @if rank == 0 { "home of the key" }
                    @if rank == 0 && own { ", " }
                    @if own { "this build" }
                }
            }
            td { (state(&backend.state)) }
            td.short { (load(backend)) (backend.load()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_has_its_three_parts_in_proportion() {
        let seconds = Duration::from_secs;
        let drawn = timeline(seconds(1), seconds(1), seconds(2)).into_string();
        assert!(drawn.contains("waited 1.0 s, was placed in 1.0 s, ran for 2.0 s"), "{drawn}");
        assert!(drawn.contains(r#"<rect class="ran" x="500" width="500""#), "{drawn}");
        // The first moment of a build.
        assert!(
            timeline(Duration::ZERO, Duration::ZERO, Duration::ZERO).into_string().contains("0 ms")
        );
    }

    #[test]
    fn each_build_of_the_ref_is_shown() {
        let build = |pool: &str| Build {
            pool: pool.to_owned(),
            r#ref: "r".to_owned(),
            key: "shop".to_owned(),
            backend: "b".to_owned(),
            ..Build::default()
        };
        let snapshot = Snapshot {
            backends: ["a", "b"]
                .map(|name| Backend { pool: "p".into(), name: name.into(), ..Backend::default() })
                .to_vec(),
            builds: vec![build("p"), build("q")],
            recent: vec![EndedBuild { build: build("p"), ..EndedBuild::default() }],
            queue: vec![QueuedBuild { r#ref: Some("r".to_owned()), ..QueuedBuild::default() }],
            ..Snapshot::default()
        };
        let ranking = |pool: &str, key: &str| {
            assert_eq!(key, "shop");
            if pool == "p" { vec!["b".to_owned(), "a".to_owned()] } else { Vec::new() }
        };
        let page = builds(&snapshot, "r", &ranking).expect("found").into_string();
        for told in ["It is number 0 in the queue", "It still runs", "It ended after", "Build 4"] {
            assert!(page.contains(told), "{told} is not in {page}");
        }
        assert!(page.contains("home of the key, this build"), "{page}");
        assert!(page.contains("No key decides"), "the other pool has no ranks");
        assert!(builds(&snapshot, "s", &ranking).is_none());
    }
}
