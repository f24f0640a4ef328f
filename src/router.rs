//! The route of a stream, by gRPC path and metadata. A pure function over one table of methods, whose rows also hold the
//! labels of the metrics.

use std::sync::Arc;

use http::HeaderMap;

use crate::{
    access::Operation,
    identity::Identity,
    ids::{self, Id, SessionId},
};

/// What the proxy does with a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Read the Solve, and bind its build.
    Solve,
    /// Park the Session until it is bound.
    Session(SessionId),
    /// Read the ref in the message, and park the stream until that build is bound.
    Status,
    /// Park the stream until this build is bound.
    Build(Id),
    /// The same, but not for long.
    Ping(Id),
    /// The same, once its message is known to be complete.
    Return(Id),
    /// Send the stream where this session is bound, or to any daemon if the session is unknown.
    Follow(SessionId),
    /// Ask all daemons for their disk usage.
    DiskUsage,
    /// Ask all daemons to prune.
    Prune,
    /// Merge the build histories of all daemons.
    ListenHistory,
    /// Send it to the daemon that has the record.
    UpdateHistory,
    /// Send it to a daemon that has the blob.
    ContentByDigest,
    /// Merge the lists of blobs of all daemons.
    ContentList,
    /// Send it to the daemon that ran the build of this trace.
    ExportTrace,
    /// Send it to any daemon, and to another if that one is silent.
    FirstAnswer,
    /// Send it to any daemon, without reading it.
    Any,
}

impl Route {
    /// What a client must be allowed to do for it, or whose what it must be allowed to see. Calls of a build are
    /// judged with its Solve.
    pub fn needs(&self) -> Needs {
        match self {
            Self::DiskUsage => Needs::Operation(Operation::DiskUsage),
            Self::Prune => Needs::Operation(Operation::Prune),
            Self::ListenHistory | Self::UpdateHistory => Needs::History,
            Self::ContentByDigest => Needs::Content,
            Self::ContentList => Needs::AllContent,
            Self::Build(_) | Self::Ping(_) | Self::Return(_) | Self::Follow(_) => {
                Needs::Operation(Operation::Build)
            }
            Self::Solve
            | Self::Session(_)
            | Self::Status
            | Self::ExportTrace
            | Self::FirstAnswer
            | Self::Any => Needs::Nothing,
        }
    }
}

/// What a client must be allowed for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing, or what its handler asks for.
    Nothing,
    /// To do this.
    Operation(Operation),
    /// To see some build records.
    History,
    /// To read some blobs.
    Content,
    /// To read all blobs.
    AllContent,
}

/// A row of the table: service, method, and where its calls go.
#[derive(Debug)]
pub struct Method(&'static str, &'static str, fn(Metadata<'_>) -> Route);

/// The metadata of a call, and whose call it is.
#[derive(Debug, Clone, Copy)]
struct Metadata<'a> {
    headers: &'a HeaderMap,
    owner: Option<&'a Arc<Identity>>,
}

impl Method {
    /// The labels of service and method for metrics, from a closed set.
    pub fn labels(&self) -> (&'static str, &'static str) {
        (self.0, self.1)
    }

    /// Whether it is one of those that a build's frontend calls, any number of times.
    pub fn is_of_frontend(&self) -> bool {
        self.0 == BRIDGE
    }

    /// The route, by the metadata of the call.
    pub fn route(&self, headers: &HeaderMap, owner: Option<&Arc<Identity>>) -> Route {
        (self.2)(Metadata { headers, owner })
    }
}

/// The service that a build's frontend calls.
const BRIDGE: &str = "moby.buildkit.v1.frontend.LLBBridge";

/// The method of the row for all methods of a service that have no row of their own.
const REST: &str = "other";

/// Any method of any other service.
static OTHER: Method = Method("other", REST, |_| Route::Any);

/// Every method of the services that buildkitd v0.32.2 registers. Clients newer than this list may know
/// more methods; those of a build go wherever the ids in their metadata are.
static METHODS: [Method; 43] = {
    const CONTROL: &str = "moby.buildkit.v1.Control";
    const CONTENT: &str = "containerd.services.content.v1.Content";
    const TRACE: &str = "opentelemetry.proto.collector.trace.v1.TraceService";
    const HEALTH: &str = "grpc.health.v1.Health";
    const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
    const REFLECTION_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";
    [
        Method(CONTROL, "DiskUsage", |_| Route::DiskUsage),
        Method(CONTROL, "Info", |_| Route::FirstAnswer),
        Method(CONTROL, "ListWorkers", |_| Route::FirstAnswer),
        Method(CONTROL, "ListenBuildHistory", |_| Route::ListenHistory),
        Method(CONTROL, "Prune", |_| Route::Prune),
        Method(CONTROL, "Session", by_session),
        Method(CONTROL, "Solve", |_| Route::Solve),
        Method(CONTROL, "Status", |_| Route::Status),
        Method(CONTROL, "UpdateBuildHistory", |_| Route::UpdateHistory),
        Method(CONTROL, REST, by_ids),
        Method(BRIDGE, "Evaluate", by_ids),
        Method(BRIDGE, "ExecProcess", by_ids),
        Method(BRIDGE, "Inputs", by_ids),
        Method(BRIDGE, "NewContainer", by_ids),
        Method(BRIDGE, "Ping", ping),
        Method(BRIDGE, "ReadDir", by_ids),
        Method(BRIDGE, "ReadDirContainer", by_ids),
        Method(BRIDGE, "ReadFile", by_ids),
        Method(BRIDGE, "ReadFileContainer", by_ids),
        Method(BRIDGE, "ReleaseContainer", by_ids),
        Method(BRIDGE, "ResolveImageConfig", by_ids),
        Method(BRIDGE, "ResolveSourceMeta", by_ids),
        Method(BRIDGE, "Return", by_build),
        Method(BRIDGE, "Solve", by_ids),
        Method(BRIDGE, "StatFile", by_ids),
        Method(BRIDGE, "StatFileContainer", by_ids),
        Method(BRIDGE, "Warn", by_ids),
        Method(BRIDGE, REST, by_ids),
        Method(CONTENT, "Abort", |_| Route::Any),
        Method(CONTENT, "Delete", |_| Route::Any),
        Method(CONTENT, "Info", |_| Route::ContentByDigest),
        Method(CONTENT, "List", |_| Route::ContentList),
        Method(CONTENT, "ListStatuses", |_| Route::ContentList),
        Method(CONTENT, "Read", |_| Route::ContentByDigest),
        Method(CONTENT, "Status", |_| Route::Any),
        Method(CONTENT, "Update", |_| Route::Any),
        Method(CONTENT, "Write", |_| Route::Any),
        Method(TRACE, "Export", |_| Route::ExportTrace),
        Method(HEALTH, "Check", |_| Route::Any),
        Method(HEALTH, "List", |_| Route::Any),
        Method(HEALTH, "Watch", |_| Route::Any),
        Method(REFLECTION, "ServerReflectionInfo", |_| Route::Any),
        Method(REFLECTION_ALPHA, "ServerReflectionInfo", |_| Route::Any),
    ]
};

/// The row of the path `/service/method`.
pub fn method(path: &str) -> &'static Method {
    let Some((service, method)) = path.strip_prefix('/').and_then(|rest| rest.split_once('/'))
    else {
        return &OTHER;
    };
    let row = |name: &str| METHODS.iter().find(|row| row.1 == name && row.0 == service);
    row(method).or_else(|| row(REST)).unwrap_or(&OTHER)
}

/// A Session without its uuid goes to a daemon, whose error says what is missing.
fn by_session(call: Metadata<'_>) -> Route {
    ids::session(call.headers, call.owner).map_or(Route::Any, Route::Session)
}

/// The route by the ids in the metadata.
fn by_ids(call: Metadata<'_>) -> Route {
    let (headers, owner) = (call.headers, call.owner);
    match (ids::build(headers, owner), ids::session(headers, owner)) {
        (Some(build), _) => Route::Build(build),
        (None, Some(session)) => Route::Follow(session),
        (None, None) => Route::Any,
    }
}

/// [`by_ids`] for the call with the shortest client timeout.
fn ping(call: Metadata<'_>) -> Route {
    match by_ids(call) {
        Route::Build(build) => Route::Ping(build),
        route => route,
    }
}

/// [`by_ids`] for a call whose message is read first. A daemon refuses the call unread if it names no build.
fn by_build(call: Metadata<'_>) -> Route {
    match by_ids(call) {
        Route::Build(build) => Route::Return(build),
        route => route,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (http::HeaderName::from_static(name), value.parse().expect("a header value"))
            })
            .collect()
    }

    fn route(path: &str, headers: &HeaderMap) -> Route {
        method(path).route(headers, None)
    }

    fn session_id(text: &str) -> SessionId {
        SessionId::new(text.as_bytes(), None).expect("valid")
    }

    fn id(text: &str) -> Id {
        Id::new(text.as_bytes(), None).expect("valid")
    }

    #[test]
    fn every_call_of_a_build_is_known_by_its_id() {
        let session = headers(&[("x-docker-expose-session-uuid", "s1")]);
        let build = headers(&[("buildkit-controlapi-buildid", "r1")]);
        let none = HeaderMap::new();
        assert_eq!(route("/moby.buildkit.v1.Control/Solve", &none), Route::Solve);
        let path = "/moby.buildkit.v1.Control/Session";
        assert_eq!(route(path, &session), Route::Session(session_id("s1")));
        assert_eq!(route(path, &none), Route::Any);
        let path = "/moby.buildkit.v1.frontend.LLBBridge/Ping";
        assert_eq!(route(path, &build), Route::Ping(id("r1")));
        assert_eq!(route(path, &none), Route::Any);
        let path = "/moby.buildkit.v1.frontend.LLBBridge/Evaluate";
        assert_eq!(route(path, &build), Route::Build(id("r1")));
        let path = "/moby.buildkit.v1.frontend.LLBBridge/Return";
        assert_eq!(route(path, &build), Route::Return(id("r1")));
        assert_eq!(route(path, &none), Route::Any, "a daemon refuses it before it reads it");
    }

    #[test]
    fn an_unknown_method_of_a_known_service_follows_its_ids() {
        let path = "/moby.buildkit.v1.Control/FromTheFuture";
        let build = headers(&[("buildkit-controlapi-buildid", "r1")]);
        assert_eq!(route(path, &build), Route::Build(id("r1")));
        let session = headers(&[("x-docker-expose-session-uuid", "s1")]);
        assert_eq!(route(path, &session), Route::Follow(session_id("s1")));
        assert_eq!(route(path, &HeaderMap::new()), Route::Any);
    }

    #[test]
    fn everything_else_goes_through() {
        for path in ["/grpc.health.v1.Health/Check", "/x.Y/Z", "", "/", "//", "nonsense"] {
            assert_eq!(route(path, &HeaderMap::new()), Route::Any, "{path}");
        }
    }

    #[test]
    fn each_method_has_one_row() {
        for row in &METHODS {
            let rows = METHODS.iter().filter(|other| other.labels() == row.labels());
            assert_eq!(rows.count(), 1, "{:?}", row.labels());
            assert_eq!(method(&format!("/{}/{}", row.0, row.1)).labels(), row.labels());
        }
    }

    #[test]
    fn labels_are_a_closed_set() {
        let labels = |path| method(path).labels();
        let control = "moby.buildkit.v1.Control";
        assert_eq!(labels("/moby.buildkit.v1.Control/Solve"), (control, "Solve"));
        assert_eq!(labels("/moby.buildkit.v1.Control/Made-Up"), (control, REST));
        for path in ["/made.up/Solve", "/containerd.services.content.v1.Content/X", "garbage"] {
            assert_eq!(labels(path), OTHER.labels(), "{path}");
        }
    }
}
