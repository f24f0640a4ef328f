//! The CA certificates of one file, for the question whether they have signed a client's certificate.

use std::{path::Path, sync::Arc};

use rustls::{
    pki_types::{CertificateDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio_util::sync::CancellationToken;

use super::{
    files::{Contents, Files, TlsError},
    provider,
    rotation::{Followed, Made},
};
use crate::metrics::{Metrics, TlsSide};

/// CA certificates that follow their file.
#[derive(Debug)]
pub struct Authority(Followed<Arc<dyn ClientCertVerifier>>);

impl Authority {
    /// Reads the CA certificates in `file`.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn load(file: &Path) -> Result<Self, TlsError> {
        let files = Files { ca: Some(file.to_owned()), ..Files::default() };
        let own = files.clone();
        Followed::load(files, move |contents| make(contents, &own)).map(Self)
    }

    /// Whether they have signed the first certificate of `chain`, for a client and for now. The others in `chain` may
    /// stand between.
    pub fn has_signed(&self, chain: &[&[u8]]) -> bool {
        let Some((leaf, between)) = chain.split_first() else { return false };
        let between: Vec<_> = between.iter().map(|der| CertificateDer::from(*der)).collect();
        let verifier = self.0.current();
        verifier.verify_client_cert(&CertificateDer::from(*leaf), &between, UnixTime::now()).is_ok()
    }

    /// Follows the file until `stop`.
    pub async fn follow(self: Arc<Self>, metrics: Arc<Metrics>, stop: CancellationToken) {
        self.0.follow(TlsSide::Identity, &metrics, stop).await;
    }
}

fn make(contents: &Contents, files: &Files) -> Result<Made<Arc<dyn ClientCertVerifier>>, TlsError> {
    let authorities = contents.authorities(files)?.ok_or(TlsError::NoAuthorities)?;
    let builder = WebPkiClientVerifier::builder_with_provider(authorities, provider());
    let config = builder.build().map_err(|error| TlsError::Unusable(error.to_string()))?;
    Ok(Made { config, chain: Vec::new() })
}
