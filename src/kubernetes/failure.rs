//! Why the API server does not do what it is asked, in words for whoever can mend it.

use kube::{core::Status, runtime::watcher};

use crate::{metrics::PodVerb, outage::Reason};

/// What is asked of the API server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    /// What it does.
    pub verb: PodVerb,
    /// As RBAC writes it.
    pub resource: &'static str,
    /// Where.
    pub namespace: &'a str,
    /// What a Role has to grant.
    pub verbs: &'static str,
}

impl Question<'_> {
    /// Why it is not answered.
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

/// Whether all is to be read anew, which is how a watch is meant to end.
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

/// The cause of all causes: those between repeat each other.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
