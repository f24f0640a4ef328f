//! The labels of the metrics, and the closed sets of their values.

use prometheus_client::encoding::EncodeLabelSet;

use crate::{
    error::{ConnectionErrorReason, ErrorReason},
    label::label_set,
    outage::Reason,
};

label_set! {
    /// The state of a backend.
    pub enum BackendState {
        /// No probe has succeeded yet.
        Starting = "starting",
        /// The backend takes builds.
        Ready = "ready",
        /// The backend is ejected, or discovery says that it is not ready.
        Unhealthy = "unhealthy",
        /// The backend fails builds for reasons of its own, so it takes builds only if no other backend does.
        Degraded = "degraded",
        /// An operator, or the daemon itself, asked for no new builds.
        Cordoned = "cordoned",
        /// The backend leaves the fleet and finishes its builds.
        Draining = "draining",
        /// The backend leaves the fleet and cannot be reached.
        Lost = "lost",
    }
}

label_set! {
    /// What makes the proxy doubt a backend.
    pub enum Fault {
        /// The daemon refused a connection.
        Refused = "refused",
        /// The daemon did not accept a connection in time.
        Timeout = "timeout",
        /// A connection broke while streams were open on it.
        Lost = "lost",
        /// The daemon did not answer a probe.
        Probe = "probe",
        /// The daemon accepted a connection, and the TLS handshake failed.
        Tls = "tls",
    }
}

label_set! {
    /// How a Session stream ended.
    pub enum SessionResult {
        /// The daemon ended the stream.
        Ok = "ok",
        /// The client went away.
        ClientGone = "client_gone",
        /// The daemon reset the stream, or the connection to it broke.
        BackendLost = "backend_lost",
    }
}

label_set! {
    /// How a request to drain a backend ended.
    pub enum DrainResult {
        /// Nothing is bound to the backend any more.
        Drained = "drained",
        /// Builds were left when the timeout of the request was over.
        Timeout = "timeout",
        /// The caller went away before the drain ended.
        Aborted = "aborted",
    }
}

label_set! {
    /// How a build left the queue.
    pub enum QueueExit {
        /// The build got a slot on a backend.
        Granted = "granted",
        /// The build waited as long as builds may wait.
        WaitedOut = "waited_out",
        /// The client of the build went away.
        ClientGone = "client_gone",
        /// The proxy is about to end.
        Draining = "draining",
    }
}

label_set! {
    /// The direction of relayed bytes.
    pub enum Direction {
        /// From client to daemon.
        Up = "up",
        /// From daemon to client.
        Down = "down",
    }
}

label_set! {
    /// The kind of a request about pods, as RBAC names it.
    pub enum PodVerb {
        /// Reads all pods.
        List = "list",
        /// Follows the changes of pods.
        Watch = "watch",
        /// Changes the annotations of a pod.
        Patch = "patch",
    }
}

label_set! {
    /// Why a request on the admin port is refused.
    pub enum AdminRefusal {
        /// The port takes no changes from anybody.
        Disabled = "disabled",
        /// The client shows neither a token nor a certificate.
        NoToken = "no_token",
        /// The client shows a wrong token.
        WrongToken = "wrong_token",
        /// The client shows a certificate whose name is not listed.
        WrongClient = "wrong_client",
        /// A web page in a browser asks for a change.
        WebPage = "web_page",
    }
}

label_set! {
    /// Why a connection to the admin port was closed.
    pub enum AdminClosure {
        /// The address of the client reached its share of the connections.
        Share = "share",
        /// The port reached its limit of connections.
        Full = "full",
        /// The client did not read its answer in time.
        Slow = "slow",
    }
}

label_set! {
    /// Which steps of builds a daemon has counted.
    pub enum StepKind {
        /// Those that were in its cache.
        Cached = "cached",
        /// All.
        Total = "total",
    }
}

label_set! {
    /// Whether the metrics of a daemon were read.
    pub enum ReadResult {
        /// They were read.
        Ok = "ok",
        /// The daemon did not answer, or its answer cannot be used.
        Failed = "failed",
    }
}

label_set! {
    /// What became of a span that has ended.
    pub enum SpanResult {
        /// The collector has it.
        Exported = "exported",
        /// The collector could not be reached, or refused it.
        Failed = "failed",
        /// Too many spans were waiting to be exported.
        Dropped = "dropped",
    }
}

label_set! {
    /// The side of the proxy on which certificates are used.
    pub enum TlsSide {
        /// Towards the clients that build.
        Client = "client",
        /// Towards daemons.
        Backend = "backend",
        /// Towards KEDA.
        Scaler = "scaler",
        /// Towards clients of the admin port.
        Admin = "admin",
        /// The CA certificates of an identity rule.
        Identity = "identity",
    }
}

label_set! {
    /// What became of certificates that changed.
    pub enum ReloadResult {
        /// New connections use them.
        Ok = "ok",
        /// They cannot be used, and the previous ones stay in use.
        Failed = "failed",
    }
}

/// The name of a label and, if its values are a closed set, all of them.
pub type Described = (&'static str, Vec<&'static str>);

/// Describes the labels of one family for the documentation.
pub(super) trait LabelNames {
    fn described() -> Vec<Described>;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($text:ident),* $(; $($set:ident: $type:ty),+)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name { $($text: String,)* $($($set: $type),+)? }

        impl $name {
            /// Labels with these values: first those from the configuration or the fleet, then those of closed
            /// sets.
            pub(super) fn new($($text: &str,)* $($($set: $type),+)?) -> Self {
                Self { $($text: $text.to_owned(),)* $($($set),+)? }
            }
        }

        impl LabelNames for $name {
            fn described() -> Vec<Described> {
                vec![
                    $((stringify!($text), Vec::new()),)*
                    $($((stringify!($set), <$type>::ALL.iter().map(|value| value.label()).collect())),+)?
                ]
            }
        }
    };
}

labels!(/// One pool.
    PoolLabels { pool });
labels!(/// One backend.
    BackendLabels { pool, backend });
labels!(/// One backend and its state.
    StateLabels { pool, backend; state: BackendState });
labels!(/// One backend and the version of its daemon.
    VersionLabels { pool, backend, version });
labels!(/// One backend and a gRPC code name.
    CodeLabels { pool, backend, grpc_code });
labels!(/// One backend and how a session ended.
    ResultLabels { pool, backend; result: SessionResult });
labels!(/// One backend and the direction of bytes.
    DirectionLabels { pool, backend; direction: Direction });
labels!(/// One backend and why its connection failed.
    FaultLabels { pool, backend; reason: Fault });
labels!(/// One backend, the policy of its pool, and which steps.
    StepLabels { pool, backend, policy; kind: StepKind });
labels!(/// Whether metrics of daemons were read.
    ReadLabels { pool; result: ReadResult });
labels!(/// Where backends are found, as the configuration writes it.
    SourceLabels { pool, source });
labels!(/// The same, and why it failed.
    SourceReasonLabels { pool, source; reason: Reason });
labels!(/// What was asked about pods, and why in vain.
    PodErrorLabels { pool; verb: PodVerb, reason: Reason });
labels!(/// How the drain of a backend ended.
    DrainLabels { pool; result: DrainResult });
labels!(/// How a build left the queue.
    QueueLabels { pool; reason: QueueExit });
labels!(/// Why a request was refused on the admin port.
    AdminRefusalLabels { ; reason: AdminRefusal });
labels!(/// Why a connection of the admin port was closed.
    AdminClosureLabels { ; reason: AdminClosure });
labels!(/// What became of a span.
    SpanLabels { ; result: SpanResult });
labels!(/// The certificates of one side.
    CertificateLabels { pool; side: TlsSide });
labels!(/// The same, and what became of a change.
    ReloadLabels { pool; side: TlsSide, result: ReloadResult });
labels!(/// The kind of an error of the proxy's own.
    RejectionLabels { pool; reason: ErrorReason });
labels!(/// Why a client's connection ended or was refused.
    ConnectionErrorLabels { pool; reason: ConnectionErrorReason });
labels!(/// A gRPC code name.
    GrpcCodeLabels { pool, grpc_code });
labels!(/// How a build found its backend.
    DecisionLabels { pool, policy, outcome, key_source });

/// A gRPC method that the proxy knows. Any other method is `other`. This is counted for every call, so nothing is
/// allocated.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MethodLabels {
    pub(super) grpc_service: &'static str,
    pub(super) grpc_method: &'static str,
}

impl LabelNames for MethodLabels {
    fn described() -> Vec<Described> {
        vec![("grpc_service", Vec::new()), ("grpc_method", Vec::new())]
    }
}
