//! What the client of a waiting build was told in the name of a daemon.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Answers;

/// The Pong that the client of a build got while the build waited. The daemon of the build must have all features
/// in it.
///
/// Clones are the same promise. A promise ends when the build has its daemon, which then answers itself.
#[derive(Debug, Clone, Default)]
pub struct Promise(Arc<Mutex<Promised>>);

#[derive(Debug, Default)]
struct Promised {
    given: Option<Answers>,
    settled: bool,
}

impl Promise {
    /// The Pong to send: the one that was sent before, or the one in `answers`. `None` if the build has its daemon.
    pub fn give(&self, answers: impl FnOnce() -> Option<Answers>) -> Option<Bytes> {
        let mut promised = self.0.lock();
        if promised.settled {
            return None;
        }
        if promised.given.is_none() {
            promised.given = answers();
        }
        promised.given.as_ref().map(|answers| answers.pong.clone())
    }

    /// The answers whose Pong was sent. `None` if none was.
    pub fn given(&self) -> Option<Answers> {
        self.0.lock().given.clone()
    }

    /// Whether the build may get a daemon that `keeps` the promise. If so, the promise ends.
    pub fn settle(&self, keeps: impl FnOnce(&Answers) -> bool) -> bool {
        let mut promised = self.0.lock();
        let kept = promised.given.as_ref().is_none_or(keeps);
        promised.settled |= kept;
        kept
    }

    /// A new promise with the same Pong, for a build that should have shared the daemon of another build and does
    /// not.
    #[must_use]
    pub fn renewed(&self) -> Self {
        Self(Arc::new(Mutex::new(Promised { given: self.given(), settled: false })))
    }
}

impl PartialEq for Promise {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Promise {}

#[cfg(test)]
mod tests {
    use super::{super::tests::answers, *};

    #[test]
    fn what_was_given_first_is_given_again() {
        let promise = Promise::default();
        assert_eq!(promise.give(|| None), None);
        let old = answers("v0.16.0");
        assert_eq!(promise.give(|| Some(old.clone())), Some(old.pong.clone()));
        assert_eq!(promise.give(|| Some(answers("v0.32.2"))), Some(old.pong.clone()));
        assert_eq!(promise.given(), Some(old));
    }

    #[test]
    fn nothing_is_promised_of_a_daemon_that_answers_itself() {
        let promise = Promise::default();
        assert!(promise.settle(|_| unreachable!("nothing is promised")));
        assert_eq!(promise.give(|| Some(answers("v0.16.0"))), None);
        assert_eq!(promise.given(), None);
    }

    #[test]
    fn a_promise_that_a_daemon_cannot_keep_stays_one() {
        let promise = Promise::default();
        promise.give(|| Some(answers("v0.32.2")));
        assert!(!promise.settle(|_| false));
        assert_eq!(promise.give(|| None), Some(answers("v0.32.2").pong), "it still waits");
        assert!(promise.settle(|answers| answers.version.as_str() == "v0.32.2"));
        assert_eq!(promise.give(|| None), None);
        assert_eq!(promise.renewed().give(|| None), Some(answers("v0.32.2").pong));
    }
}
