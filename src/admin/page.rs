//! The page of the admin port, for people: `/` shows everything, `/builds/REF` one build.
//!
//! Both are rendered here and work without a script. A small script of our own keeps them up to date: `/events` tells
//! it that something has changed, and it then fetches the page again. So there is one renderer, and a browser that gets
//! no events asks every few seconds.
//!
//! Everything on the page is text: the templates escape it, and the browser runs and loads nothing but the script and
//! style of this port.

mod build;
mod builds;
mod fleet;
mod live;
mod placement;
mod surroundings;
mod table;
mod words;

use axum::{
    extract::{Path, State},
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, RETRY_AFTER,
            X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};

pub(super) use self::live::Live;
use self::words::{count, foreign, shown};
use super::{Admin, access::Reader};
use crate::{
    policy::{self, KeyHash, PolicyKind},
    snapshot::Snapshot,
};

/// What the browser may load and run: the style, the script and the events of this port.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A small picture for the tab. Without one the browser would ask for `/favicon.ico`.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'%3E%3Cpath \
                    fill='%233b73c4' d='M0 0h8v2H0zM0 3h5v2H0zM0 6h7v2H0z'/%3E%3C/svg%3E";

/// `/`: the whole status.
pub(super) async fn page(_reader: Reader, State(admin): State<Admin>) -> Response {
    let page = admin.live.rendered(&admin).page;
    answer(StatusCode::OK, "text/html; charset=utf-8", page)
}

/// `/builds/REF`: the builds with this ref.
pub(super) async fn build(
    _reader: Reader,
    State(admin): State<Admin>,
    Path(r#ref): Path<String>,
) -> Response {
    let snapshot = admin.live.rendered(&admin).snapshot;
    let found = build::builds(&snapshot, &r#ref, &|pool, key| ranking(&admin, pool, key));
    let code = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
    let body = html! {
        h1 { "Build " span.mono { (foreign(&r#ref)) } }
        (found.unwrap_or_else(|| build::nothing(&r#ref)))
    };
    let page = frame(&snapshot, &format!("Build {}", shown(&r#ref)), &body).into_string();
    answer(code, "text/html; charset=utf-8", page)
}

/// `/events`: says whenever the page has changed.
pub(super) async fn events(_reader: Reader, State(admin): State<Admin>) -> Response {
    match admin.live.watch() {
        Some(watcher) => answer(StatusCode::OK, "text/event-stream", live::events(admin, watcher)),
        None => {
            let text = "too many browsers watch the page: ask for the page itself\n";
            let refusal = answer(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text);
            ([(RETRY_AFTER, "30")], refusal).into_response()
        }
    }
}

/// `/page.css`
pub(super) async fn style(_reader: Reader) -> Response {
    answer(StatusCode::OK, "text/css; charset=utf-8", include_str!("page/page.css"))
}

/// `/page.js`
pub(super) async fn script(_reader: Reader) -> Response {
    answer(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("page/page.js"))
}

/// An answer that no browser keeps, takes for something else, or shows within another page.
fn answer(code: StatusCode, kind: &'static str, body: impl IntoResponse) -> Response {
    let headers: [(HeaderName, &str); 5] = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    let mut response = (code, body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The names of a pool's backends in the order of the policy for `key` now. Empty if keys do not matter to the policy.
fn ranking(admin: &Admin, pool: &str, key: &str) -> Vec<String> {
    let Some(pool) = admin.pools.iter().find(|known| known.name() == pool) else {
        return Vec::new();
    };
    if pool.proxy.placement.policy().kind != PolicyKind::ConsistentHash {
        return Vec::new();
    }
    let roster = pool.proxy.fleet.roster();
    let ranked = policy::ranking(KeyHash::new(key), roster.candidates());
    ranked.into_iter().map(|index| roster.backends()[index].name().to_owned()).collect()
}

/// The page `/`.
fn home(snapshot: &Snapshot) -> Markup {
    let body = html! {
        h1.sr { "Status of this proxy" }
        (surroundings::warnings(snapshot))
        (fleet::tiles(snapshot))
        (fleet::fleet(snapshot))
        (builds::queue(snapshot))
        (builds::running(snapshot))
        (builds::recent(snapshot))
        div.pair { (placement::placement(snapshot)) (placement::keys(snapshot)) }
        div.pair {
            (surroundings::pools(snapshot)) (surroundings::discovery(snapshot)) (surroundings::certificates(snapshot))
        }
    };
    frame(snapshot, "buildkit-lb", &body)
}

/// What both pages have around their `body`.
fn frame(snapshot: &Snapshot, title: &str, body: &Markup) -> Markup {
    let links = [
        ("fleet", "Fleet"),
        ("queue", "Queue"),
        ("running", "Running"),
        ("recent", "Recent"),
        ("placement", "Placement"),
        ("pools", "Pools"),
    ];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="icon" href=(ICON);
                link rel="stylesheet" href="/page.css";
                script src="/page.js" defer {}
                noscript { meta http-equiv="refresh" content="5"; }
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.name href="/" { "buildkit-lb" }
                    nav aria-label="Sections" {
                        @for (id, name) in links { a href={ "/#" (id) } { (name) } }
                    }
                    p #live role="status" { "Not live" }
                }
                main id="main" tabindex="-1" {
                    p.sr role="status" { (in_short(snapshot)) }
                    (body)
                }
                footer {
                    "Version " (foreign(&snapshot.version)) ". Times are in UTC. The same as JSON: "
                    a href="/status.json" { "/status.json" }
                }
            }
        }
    }
}

/// The state in one sentence, which a screen reader reads when it changes.
fn in_short(snapshot: &Snapshot) -> String {
    let ready = snapshot.backends.iter().filter(|backend| backend.state == "ready").count();
    let running: usize = snapshot.pools.iter().map(|pool| pool.running).sum();
    format!(
        "{} of {} ready, {} running, {} waiting, {}.",
        ready,
        count(snapshot.backends.len(), "backend"),
        count(running, "build"),
        snapshot.queue.len(),
        count(snapshot.warnings.len(), "warning"),
    )
}

#[cfg(test)]
mod tests;
