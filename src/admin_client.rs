//! Asks the admin port or the control listener of a proxy, for the commands of operators and for the drain of a
//! daemon.

mod credentials;
mod error;
mod request;
mod url;

use std::time::Duration;

use http::{Method, StatusCode};

pub use self::{
    credentials::{CredentialFlags, Credentials, CredentialsError},
    error::AskError,
    request::{ProxyAddress, Question, RequestError, send},
    url::AdminUrl,
};

/// The heading of the flags that name a proxy and show it something, in `--help`.
pub const HEADING: &str = "The proxy";

/// How long a proxy may take for an answer that it need not wait for.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest answer in bytes. The status of a thousand backends and ten thousand builds has a tenth of this.
const LONGEST: usize = 64 << 20;

/// Which proxy is asked, and what is shown to it.
#[derive(Debug, Clone, clap::Args)]
pub struct ProxyFlags {
    /// The proxy's admin port, http://HOST:PORT or https://HOST:PORT, or its control listener, unix:///PATH. The
    /// variable BUILDKIT_LB_ADMIN sets it, too.
    #[arg(
        help_heading = HEADING, long, value_name = "URL", env = "BUILDKIT_LB_ADMIN", hide_env = true,
        default_value = "http://127.0.0.1:9090"
    )]
    admin: AdminUrl,
    #[command(flatten)]
    credentials: CredentialFlags,
}

/// A request of an operator.
#[derive(Debug)]
pub struct Ask<'a> {
    /// What is done.
    pub method: Method,
    /// The path, with the query.
    pub path: &'a str,
    /// How much longer than the usual limit the answer may take, because the proxy has to wait for something.
    pub wait: Duration,
}

impl<'a> Ask<'a> {
    /// Reads `path`.
    pub fn get(path: &'a str) -> Self {
        Self { method: Method::GET, path, wait: Duration::ZERO }
    }
}

impl ProxyFlags {
    /// The URL of the proxy.
    pub fn url(&self) -> &AdminUrl {
        &self.admin
    }

    /// Sends a request to the first address of the proxy that accepts a connection. Returns the body of a good answer.
    ///
    /// # Errors
    /// There is no answer, or not a good one. The error says what to do.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<String, AskError> {
        let url = || self.admin.clone();
        let credentials = self.credentials.read(self.admin.is_secured());
        let credentials =
            credentials.map_err(|source| AskError::Credentials { url: url(), source })?;
        let addresses = self.admin.addresses().await;
        let addresses = addresses.map_err(|source| AskError::Lookup { url: url(), source })?;
        let question = Question {
            method: ask.method.clone(),
            path: ask.path,
            limit: LIMIT + ask.wait,
            longest: LONGEST,
        };
        let mut failed = None;
        for address in addresses {
            match send(&address, &question, &credentials).await {
                Ok((StatusCode::OK, text)) => return Ok(text),
                Ok((status, text)) => return Err(AskError::refused(url(), status, &text)),
                // Another address may be that of the same proxy.
                Err(error) if error.is_unsent() => failed = Some(error),
                Err(error) => return Err(AskError::failed(url(), &error)),
            }
        }
        let error = failed.unwrap_or(RequestError::NoAddress);
        Err(AskError::failed(url(), &error))
    }
}
