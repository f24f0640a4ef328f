//! The text of a failed request to the API server, for the operator who can grant the missing permission.

use kube::{core::Status, runtime::watcher};

use crate::{metrics::PodVerb, outage::Reason};

/// A request to the API server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    /// The verb of the request.
    pub verb: PodVerb,
    /// The resource, as RBAC writes it.
    pub resource: &'static str,
    /// The namespace of the resource.
    pub namespace: &'a str,
    /// The verbs that a Role has to grant.
    pub verbs: &'static str,
}

impl Question<'_> {
    /// Why the request failed: the reason for metrics, and a text for the log.
    pub(crate) fn describe(
        &self,
        error: &(dyn std::error::Error + 'static),
        status: Option<&Status>,
    ) -> (Reason, String) {
        let Self { verb, resource, namespace, verbs } = self;
        let cannot = format!("cannot {verb} {resource} in namespace {namespace}");
        match status {
            Some(status) if status.code == 403 => {
                (Reason::Forbidden, format!("{cannot}: grant {verbs}"))
            }
            Some(status) if status.code == 401 => {
                (Reason::Unauthorized, format!("{cannot}: the API server does not know who asks"))
            }
            Some(status) => (Reason::Unreachable, format!("{cannot}: {}", status.message)),
            None => (Reason::Unreachable, format!("{cannot}: {}", innermost(error))),
        }
    }
}

/// Why a watch of `resource` failed.
pub(crate) fn describe(
    error: &watcher::Error,
    resource: &'static str,
    namespace: &str,
) -> (PodVerb, Reason, String) {
    let verb = match error {
        watcher::Error::InitialListFailed(_) => PodVerb::List,
        _ => PodVerb::Watch,
    };
    let question = Question { verb, resource, namespace, verbs: "verbs get, list, watch" };
    let (reason, text) = question.describe(error, status(error));
    (verb, reason, text)
}

/// Whether the watch expired, which is how a watch normally ends: all objects must be read again.
pub(crate) fn is_expired(error: &watcher::Error) -> bool {
    status(error).is_some_and(|status| status.code == 410)
}

fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::WatchError(status) => Some(status),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

/// The innermost cause. Those between repeat each other.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
