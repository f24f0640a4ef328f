//! Certificates that are renewed while the proxy runs.
//!
//! The files are read at intervals instead of being watched: the mount of a Secret swaps a symlink two directories
//! up, and a watch on the file would end with the old one. If new files are malformed or do not belong together,
//! the previous certificates stay in use.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::files::{Contents, Files, TlsError};
use crate::metrics::{Metrics, ReloadResult, TlsSide};

/// How often the files are read. A change is tried once the files were the same twice, because the certificate may
/// be the new one and the key still the old one while a Secret is swapped.
const INTERVAL: Duration = Duration::from_secs(2);

/// What the files result in.
#[derive(Debug)]
pub(super) struct Made<T> {
    pub(super) config: T,
    /// The certificates that are shown to the other side.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

type Make<T> = Box<dyn Fn(&Contents) -> Result<Made<T>, TlsError> + Send + Sync>;

/// A TLS configuration that follows its files.
pub(super) struct Followed<T> {
    files: Files,
    make: Make<T>,
    /// The contents of the files at the start.
    first: Contents,
    first_expiry: Option<i64>,
    current: ArcSwap<T>,
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("files", &self.files).finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Followed<T> {
    /// Reads the files for the first time.
    pub(super) fn load(
        files: Files,
        make: impl Fn(&Contents) -> Result<Made<T>, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let first = files.read()?;
        let made = make(&first)?;
        Ok(Self {
            files,
            make: Box::new(make),
            first,
            first_expiry: expiry(&made.chain),
            current: ArcSwap::from_pointee(made.config),
        })
    }

    /// The configuration in use.
    pub(super) fn current(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Follows the files until `stop`.
    pub(super) async fn follow(&self, side: TlsSide, metrics: &Metrics, stop: CancellationToken) {
        metrics.certificate_expires(side, self.first_expiry);
        let mut watch = Watch::new(self.first.clone());
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else {
                continue;
            };
            let outcome = watch.check(read, |contents| (self.make)(contents));
            self.report(side, metrics, outcome);
        }
    }

    fn report(&self, side: TlsSide, metrics: &Metrics, outcome: Option<Result<Made<T>, TlsError>>) {
        let (pool, side_name) = (metrics.pool(), side.label());
        match outcome {
            None => {}
            Some(Ok(made)) => {
                let expires = expiry(&made.chain);
                self.current.store(Arc::new(made.config));
                metrics.certificate_expires(side, expires);
                metrics.certificate_reloaded(side, ReloadResult::Ok);
                let expires = expires.map(rfc3339);
                info!(pool, side = side_name, expires, "certificates have changed");
            }
            Some(Err(error)) => {
                metrics.certificate_reloaded(side, ReloadResult::Failed);
                warn!(pool, side = side_name, %error, "certificates cannot be used, the last ones stay");
            }
        }
    }
}

/// What was read of the files so far.
#[derive(Debug)]
struct Watch {
    /// The last contents that were tried, whether they could be used or not.
    tried: Contents,
    /// The contents at the last read, if they were not tried yet.
    seen: Option<Contents>,
    /// Whether the last read succeeded.
    readable: bool,
}

impl Watch {
    fn new(tried: Contents) -> Self {
        Self { tried, seen: None, readable: true }
    }

    /// The result of `make` for what was `read`, if it is new and was the same at the last read.
    fn check<T>(
        &mut self,
        read: Result<Contents, TlsError>,
        make: impl FnOnce(&Contents) -> Result<T, TlsError>,
    ) -> Option<Result<T, TlsError>> {
        let contents = match read {
            Ok(contents) => contents,
            Err(error) => {
                let told = std::mem::replace(&mut self.readable, false);
                return told.then_some(Err(error));
            }
        };
        self.readable = true;
        if contents == self.tried {
            self.seen = None;
        } else if self.seen.as_ref() == Some(&contents) {
            self.seen = None;
            let made = make(&contents);
            self.tried = contents;
            return Some(made);
        } else {
            self.seen = Some(contents);
        }
        None
    }
}

/// When the first certificate of `chain` expires, in seconds since 1970.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let not_after = |der: &CertificateDer<'_>| {
        let (_rest, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Some(certificate.validity().not_after.timestamp())
    };
    chain.iter().filter_map(not_after).min()
}

fn rfc3339(seconds: i64) -> String {
    let since = Duration::from_secs(seconds.max(0).cast_unsigned());
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(directory: &std::path::Path, certificate: &str) -> Contents {
        std::fs::write(directory.join("tls.crt"), certificate).expect("written");
        Files { certificate: Some(directory.join("tls.crt")), ..Files::default() }
            .read()
            .expect("read")
    }

    #[test]
    fn what_changes_is_tried_once_it_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let [a, b, c] = ["a", "b", "c"].map(|text| contents(directory.path(), text));
        let mut watch = Watch::new(a.clone());
        let mut look = |contents: &Contents| watch.check(Ok(contents.clone()), |_| Ok(()));
        assert!(look(&a).is_none(), "nothing has changed");
        assert!(look(&b).is_none(), "it may be half of a change");
        assert!(look(&c).is_none());
        assert!(look(&c).is_some_and(|made| made.is_ok()));
        assert!(look(&c).is_none(), "it was tried");
        assert!(look(&a).is_none());
        assert!(look(&c).is_none(), "back to what is in force");
        assert!(look(&a).is_none());
        assert!(look(&a).is_some());
    }

    #[test]
    fn files_that_cannot_be_read_are_told_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let a = contents(directory.path(), "a");
        let mut watch = Watch::new(a.clone());
        let mut gone = || watch.check(Err(TlsError::NoPair), |_| Ok(()));
        assert!(gone().is_some_and(|told| told.is_err()));
        assert!(gone().is_none());
        assert!(watch.check(Ok(a), |_| Ok(())).is_none());
        assert!(watch.check(Err(TlsError::NoPair), |_| Ok(())).is_some(), "it is told again");
    }
}
