//! The Kubernetes API: the process's one client, the text of a failure, and the objects that a watch has reported.

pub(crate) mod failure;
pub(crate) mod known;

use std::time::Duration;

use kube::{Client, Config, config::InferConfigError, runtime::watcher};
use tokio::sync::OnceCell;

/// How often a watch without events is started again. An API server that vanished is noticed after this time at the
/// latest.
const WATCH: Duration = Duration::from_secs(60);

/// The parameters of each watch.
pub(crate) fn watching() -> watcher::Config {
    watcher::Config::default().timeout(u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX))
}

/// Why there is no client for the Kubernetes API.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is neither a kubeconfig nor a service account.
    #[error("find credentials for Kubernetes (KUBECONFIG, or a pod's service account)")]
    Config(#[from] InferConfigError),
    /// The credentials cannot be used.
    #[error("use the credentials for Kubernetes")]
    Client(#[from] kube::Error),
}

/// The process's one client, which is made when it is first needed.
#[derive(Default)]
pub struct Access(OnceCell<Client>);

impl Access {
    /// A client with the credentials of `KUBECONFIG`, else those of the pod.
    ///
    /// # Errors
    /// There are no credentials, or they cannot be used. The API server is not contacted.
    pub async fn client(&self) -> Result<Client, ClientError> {
        let made = self.0.get_or_try_init(|| async {
            let mut config = Config::infer().await?;
            // The callers log each error at once and retry themselves.
            config.default_retry = false;
            Ok::<_, ClientError>(Client::try_from(config)?)
        });
        Ok(made.await?.clone())
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Access").field(&self.0.initialized()).finish()
    }
}
