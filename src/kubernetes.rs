//! What every question to a Kubernetes API server has in common: one client, the words for a failure,
//! and what a watch has told.

pub(crate) mod failure;
pub(crate) mod known;

use std::time::Duration;

use kube::{Client, Config, config::InferConfigError, runtime::watcher};
use tokio::sync::OnceCell;

/// How often a quiet watch is begun anew, and with it the longest time an API server that went away
/// without a word is taken to be there.
const WATCH: Duration = Duration::from_secs(60);

/// How a watch is asked for.
pub(crate) fn watching() -> watcher::Config {
    watcher::Config::default().timeout(u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX))
}

/// Why there is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Neither a kubeconfig nor a service account.
    #[error("find credentials for Kubernetes (KUBECONFIG, or a pod's service account)")]
    Config(#[from] InferConfigError),
    /// The credentials cannot be used.
    #[error("use the credentials for Kubernetes")]
    Client(#[from] kube::Error),
}

/// The process's one client, made when somebody first asks for it.
#[derive(Default)]
pub struct Access(OnceCell<Client>);

impl Access {
    /// A client with the credentials of `KUBECONFIG`, else those of the pod.
    ///
    /// # Errors
    /// There are none, or they cannot be used. Whether the API server is there is not asked.
    pub async fn client(&self) -> Result<Client, ClientError> {
        let made = self.0.get_or_try_init(|| async {
            let mut config = Config::infer().await?;
            // An error is to be seen and told at once; trying again is ours.
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
