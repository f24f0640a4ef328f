//! Which labels the metrics have, and the closed sets of their values.

use prometheus_client::encoding::EncodeLabelSet;

use crate::{
    error::{ConnectionErrorReason, ErrorReason},
    label::label_set,
    outage::Reason,
};

label_set! {
    /// What a backend is doing, in one word.
    pub enum BackendState {
        /// No probe has passed yet.
        Starting = "starting",
        /// It takes builds.
        Ready = "ready",
        /// It is ejected, or discovery says that it is not ready.
        Unhealthy = "unhealthy",
        /// It fails builds for reasons of its own: it takes builds where no other backend does.
        Degraded = "degraded",
        /// An operator or its own daemon asked for no new builds.
        Cordoned = "cordoned",
        /// It is on its way out and finishes what it has.
        Draining = "draining",
        /// It is on its way out and cannot be reached.
        Lost = "lost",
    }
}

label_set! {
    /// Why a backend is under suspicion.
    pub enum Fault {
        /// It did not accept a connection.
        Refused = "refused",
        /// It did not accept a connection in time.
        Timeout = "timeout",
        /// A connection broke while streams were open on it.
        Lost = "lost",
        /// It did not answer a probe.
        Probe = "probe",
        /// It accepted, and the TLS handshake failed.
        Tls = "tls",
    }
}

label_set! {
    /// How a Session stream ended.
    pub enum SessionResult {
        /// The daemon ended it.
        Ok = "ok",
        /// The client went away.
        ClientGone = "client_gone",
        /// The daemon reset it, or its connection broke.
        BackendLost = "backend_lost",
    }
}

label_set! {
    /// How a request to drain a backend ended.
    pub enum DrainResult {
        /// Nothing is bound to the backend any more.
        Drained = "drained",
        /// Builds were left at its timeout.
        Timeout = "timeout",
        /// Whoever asked went away.
        Aborted = "aborted",
    }
}

label_set! {
    /// How a build left the queue.
    pub enum QueueExit {
        /// It had its turn.
        Granted = "granted",
        /// It had waited as long as it may.
        WaitedOut = "waited_out",
        /// Its client went away.
        ClientGone = "client_gone",
        /// The proxy ended.
        Draining = "draining",
    }
}

label_set! {
    /// Which way bytes go.
    pub enum Direction {
        /// From client to daemon.
        Up = "up",
        /// From daemon to client.
        Down = "down",
    }
}

label_set! {
    /// What was asked about pods, as RBAC writes it.
    pub enum PodVerb {
        /// All of them.
        List = "list",
        /// Their changes.
        Watch = "watch",
        /// To change one.
        Patch = "patch",
    }
}

label_set! {
    /// Why a request is refused on the admin port.
    pub enum AdminRefusal {
        /// The port takes no changes from anybody.
        Disabled = "disabled",
        /// The client shows neither a token nor a certificate.
        NoToken = "no_token",
        /// The client shows a wrong token.
        WrongToken = "wrong_token",
        /// The client shows a certificate whose name is not listed.
        WrongClient = "wrong_client",
    }
}

label_set! {
    /// Why a connection of the admin port was closed.
    pub enum AdminClosure {
        /// Its address had its share.
        Share = "share",
        /// The port was full.
        Full = "full",
        /// It did not read its answer.
        Slow = "slow",
    }
}

label_set! {
    /// On which side of the proxy certificates are used.
    pub enum TlsSide {
        /// Towards clients.
        Client = "client",
        /// Towards daemons.
        Backend = "backend",
        /// Towards KEDA.
        Scaler = "scaler",
        /// Towards clients of the admin port.
        Admin = "admin",
    }
}

label_set! {
    /// What became of changed certificates.
    pub enum ReloadResult {
        /// They are in force.
        Ok = "ok",
        /// The last ones stay.
        Failed = "failed",
    }
}

/// A label and, where they are a closed set, its values.
pub type Described = (&'static str, Vec<&'static str>);

/// The labels of one family: texts from the configuration or the fleet, then values of closed sets.
pub(super) trait LabelNames {
    fn described() -> Vec<Described>;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($text:ident),* $(; $($set:ident: $type:ty),+)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $name { $($text: String,)* $($($set: $type),+)? }

        impl $name {
            /// The labels in the order of the exposition.
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

/// A known gRPC method; anything else is `other`. Counted for every call, so nothing is allocated.
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
