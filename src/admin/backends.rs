//! `/backends/NAME/…`: the builds of a daemon, its cordon, and its drain.
//!
//! A request is about the daemon in all pools that have it, unless the query names one of them: `?pool=NAME`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Admin,
    access::{Allowed, Reader},
    drain,
};
use crate::{fleet::Backend, pool::Pool};

/// The status and text of a request that is refused.
type Refusal = (StatusCode, String);

/// A daemon in one pool.
type Member<'a> = (&'a Pool, Arc<Backend>);

/// The query of a request about one daemon.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolQuery {
    pool: Option<String>,
}

/// The query of a request to drain a daemon.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainQuery {
    pool: Option<String>,
    timeout: Option<String>,
    lease: Option<String>,
    /// Addresses of the daemon, separated by commas.
    address: Option<String>,
}

/// Answers with the number of builds that are bound to a backend.
pub(super) async fn builds(
    _reader: Reader,
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
) -> Result<Json<Value>, Refusal> {
    let members = find(&admin, &name, query.pool.as_deref())?;
    let builds: u32 = members.iter().map(|(_pool, backend)| backend.builds()).sum();
    Ok(Json(json!({"backend": name, "builds": builds})))
}

/// Answers when no build is left on the backend, or when the timeout is over.
pub(super) async fn drain(
    Allowed(caller): Allowed,
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<DrainQuery>,
) -> Result<(StatusCode, String), Refusal> {
    let _waits = caller.seat.wait();
    let mut members = find(&admin, &name, query.pool.as_deref())?;
    if let Some(addresses) = &query.address {
        // Pods of two namespaces may have the same name.
        members.retain(|(_pool, backend)| drain::is_at(backend, addresses));
        if members.is_empty() {
            let text = format!("no backend called {name} has one of the addresses {addresses}\n");
            return Err((StatusCode::NOT_FOUND, text));
        }
    }
    let terms = drain::Terms::read(query.timeout.as_deref(), query.lease.as_deref())
        .map_err(|text| (StatusCode::BAD_REQUEST, text))?;
    let drains = members.iter().map(|(pool, backend)| {
        drain::drain(backend, terms, &pool.proxy.fleet, &pool.proxy.metrics)
    });
    let (codes, texts): (Vec<_>, Vec<_>) = join_all(drains).await.into_iter().unzip();
    let worst = codes.into_iter().max().unwrap_or(StatusCode::OK);
    Ok((worst, texts.concat()))
}

/// Cordons a backend, which then gets no new builds.
pub(super) async fn cordon(
    _allowed: Allowed,
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
) -> Result<String, Refusal> {
    set_cordoned(&admin, &name, &query, true)
}

/// Ends a cordon or a drain.
pub(super) async fn uncordon(
    _allowed: Allowed,
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<PoolQuery>,
) -> Result<String, Refusal> {
    set_cordoned(&admin, &name, &query, false)
}

fn set_cordoned(
    admin: &Admin,
    name: &str,
    query: &PoolQuery,
    cordoned: bool,
) -> Result<String, Refusal> {
    let mut text = String::new();
    for (_pool, backend) in find(admin, name, query.pool.as_deref())? {
        backend.set_cordoned(cordoned);
        text += &format!("{name} is {}, builds: {}\n", backend.state().label(), backend.builds());
    }
    Ok(text)
}

fn find<'a>(admin: &'a Admin, name: &str, pool: Option<&str>) -> Result<Vec<Member<'a>>, Refusal> {
    let meant = |member: &&Pool| pool.is_none_or(|pool| member.name() == pool);
    let member = |pool: &'a Pool| Some((pool, pool.proxy.fleet.find(name)?));
    let found: Vec<_> = admin.pools.iter().filter(meant).filter_map(member).collect();
    if found.is_empty() {
        let place = pool.map(|pool| format!(" in a pool called {pool}")).unwrap_or_default();
        return Err((StatusCode::NOT_FOUND, format!("no backend is called {name}{place}\n")));
    }
    Ok(found)
}
