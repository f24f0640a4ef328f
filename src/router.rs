//! gRPC path and metadata -> what to do with the stream. A pure function over a table of methods.

use http::HeaderMap;

use crate::ids::{self, Id, Key};

/// What to do with a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// Read it and bind its build.
    Solve,
    /// Park it until its session is bound.
    Session(Id),
    /// Read its ref, park it until that build is bound.
    Status,
    /// Park it until this build is bound.
    Build(Id),
    /// Follow this key if it is known, else go to any daemon.
    Follow(Key),
    /// Ask all daemons for their disk usage.
    DiskUsage,
    /// Let all daemons prune.
    Prune,
    /// One list of all daemons' build histories.
    ListenHistory,
    /// To the daemon that has the record.
    UpdateHistory,
    /// To a daemon that has the blob.
    ContentByDigest,
    /// All daemons' blobs.
    ContentList,
    /// To the daemon of the trace's build.
    ExportTrace,
    /// To any daemon, and to another one if that is silent.
    FirstAnswer,
    /// To any daemon, untouched.
    Any,
}

/// A known method: service, method.
type Method = (&'static str, &'static str);

/// Every method of the services that buildkitd v0.32.2 registers, for metric labels.
const METHODS: [Method; 43] = {
    const CONTROL: &str = "moby.buildkit.v1.Control";
    const BRIDGE: &str = "moby.buildkit.v1.frontend.LLBBridge";
    const CONTENT: &str = "containerd.services.content.v1.Content";
    [
        (CONTROL, "DiskUsage"),
        (CONTROL, "Info"),
        (CONTROL, "ListWorkers"),
        (CONTROL, "ListenBuildHistory"),
        (CONTROL, "Prune"),
        (CONTROL, "Session"),
        (CONTROL, "Solve"),
        (CONTROL, "Status"),
        (CONTROL, "UpdateBuildHistory"),
        (BRIDGE, "Evaluate"),
        (BRIDGE, "ExecProcess"),
        (BRIDGE, "Inputs"),
        (BRIDGE, "NewContainer"),
        (BRIDGE, "Ping"),
        (BRIDGE, "ReadDir"),
        (BRIDGE, "ReadDirContainer"),
        (BRIDGE, "ReadFile"),
        (BRIDGE, "ReadFileContainer"),
        (BRIDGE, "ReleaseContainer"),
        (BRIDGE, "ResolveImageConfig"),
        (BRIDGE, "ResolveSourceMeta"),
        (BRIDGE, "Return"),
        (BRIDGE, "Solve"),
        (BRIDGE, "StatFile"),
        (BRIDGE, "StatFileContainer"),
        (BRIDGE, "Warn"),
        (CONTENT, "Abort"),
        (CONTENT, "Delete"),
        (CONTENT, "Info"),
        (CONTENT, "List"),
        (CONTENT, "ListStatuses"),
        (CONTENT, "Read"),
        (CONTENT, "Status"),
        (CONTENT, "Update"),
        (CONTENT, "Write"),
        ("opentelemetry.proto.collector.trace.v1.TraceService", "Export"),
        ("grpc.health.v1.Health", "Check"),
        ("grpc.health.v1.Health", "List"),
        ("grpc.health.v1.Health", "Watch"),
        ("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"),
        ("grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo"),
        (CONTROL, "other"),
        (BRIDGE, "other"),
    ]
};

/// Labels for a method that is in no known service.
const OTHER: Method = ("other", "other");

/// Splits `/service/method`.
fn split(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.split_once('/')
}

/// The metric labels of a path: a closed set.
pub fn labels(path: &str) -> Method {
    let Some((service, method)) = split(path) else { return OTHER };
    let known = |wanted: &str| METHODS.into_iter().find(|known| *known == (service, wanted));
    known(method).or_else(|| known("other")).unwrap_or(OTHER)
}

/// Decides by path and metadata alone.
pub fn route(path: &str, headers: &HeaderMap) -> Route {
    match split(path) {
        Some(("moby.buildkit.v1.Control", method)) => control(method, headers),
        Some(("moby.buildkit.v1.frontend.LLBBridge", _)) => by_ids(headers),
        Some(("containerd.services.content.v1.Content", "Info" | "Read")) => Route::ContentByDigest,
        Some(("containerd.services.content.v1.Content", "List" | "ListStatuses")) => {
            Route::ContentList
        }
        Some(("opentelemetry.proto.collector.trace.v1.TraceService", "Export")) => {
            Route::ExportTrace
        }
        _ => Route::Any,
    }
}

fn control(method: &str, headers: &HeaderMap) -> Route {
    match method {
        "Solve" => Route::Solve,
        // Without its uuid a daemon says best what is missing.
        "Session" => ids::session(headers).map_or(Route::Any, Route::Session),
        "Status" => Route::Status,
        "DiskUsage" => Route::DiskUsage,
        "Prune" => Route::Prune,
        "ListenBuildHistory" => Route::ListenHistory,
        "UpdateBuildHistory" => Route::UpdateHistory,
        "Info" | "ListWorkers" => Route::FirstAnswer,
        _ => by_ids(headers),
    }
}

/// A method that newer clients may know: wherever its ids are.
fn by_ids(headers: &HeaderMap) -> Route {
    match (ids::build(headers), ids::session(headers)) {
        (Some(build), _) => Route::Build(build),
        (None, Some(session)) => Route::Follow(Key::Session(session)),
        (None, None) => Route::Any,
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

    fn id(text: &str) -> Id {
        Id::new(text.as_bytes()).expect("valid")
    }

    #[test]
    fn every_call_of_a_build_is_known_by_its_id() {
        let session = headers(&[("x-docker-expose-session-uuid", "s1")]);
        let build = headers(&[("buildkit-controlapi-buildid", "r1")]);
        let none = HeaderMap::new();
        assert_eq!(route("/moby.buildkit.v1.Control/Solve", &none), Route::Solve);
        let path = "/moby.buildkit.v1.Control/Session";
        assert_eq!(route(path, &session), Route::Session(id("s1")));
        assert_eq!(route(path, &none), Route::Any);
        let path = "/moby.buildkit.v1.frontend.LLBBridge/Ping";
        assert_eq!(route(path, &build), Route::Build(id("r1")));
        assert_eq!(route(path, &none), Route::Any);
    }

    #[test]
    fn an_unknown_method_of_a_known_service_follows_its_ids() {
        let path = "/moby.buildkit.v1.Control/FromTheFuture";
        let build = headers(&[("buildkit-controlapi-buildid", "r1")]);
        assert_eq!(route(path, &build), Route::Build(id("r1")));
        let session = headers(&[("x-docker-expose-session-uuid", "s1")]);
        assert_eq!(route(path, &session), Route::Follow(Key::Session(id("s1"))));
        assert_eq!(route(path, &HeaderMap::new()), Route::Any);
    }

    #[test]
    fn everything_else_goes_through() {
        for path in ["/grpc.health.v1.Health/Check", "/x.Y/Z", "", "/", "//", "nonsense"] {
            assert_eq!(route(path, &HeaderMap::new()), Route::Any, "{path}");
        }
    }

    #[test]
    fn labels_are_a_closed_set() {
        let control = "moby.buildkit.v1.Control";
        assert_eq!(labels("/moby.buildkit.v1.Control/Solve"), (control, "Solve"));
        assert_eq!(labels("/moby.buildkit.v1.Control/Made-Up"), (control, "other"));
        assert_eq!(labels("/made.up/Solve"), OTHER);
        assert_eq!(labels("garbage"), OTHER);
    }
}
