//! Why a proxy gives no good answer, and what an operator can do about that.

use std::io;

use http::StatusCode;

use super::{AdminUrl, CredentialsError, RequestError};
use crate::{error::chain, http1::ExchangeError, terminal::printable};

/// The most characters of an answer that an error quotes. The proxy's own answers are shorter; another server may answer
/// with a page.
const QUOTED: usize = 500;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The token or the certificates cannot be read.
    #[error("ask {url}")]
    Credentials {
        /// The proxy.
        url: AdminUrl,
        /// What is wrong with them.
        source: CredentialsError,
    },
    /// The host has no address.
    #[error("look up the host of {url}")]
    Lookup {
        /// The proxy.
        url: AdminUrl,
        /// The cause.
        source: io::Error,
    },
    /// The proxy does not answer.
    #[error("ask {url}: {cause}; {advice}")]
    Failed {
        /// The proxy.
        url: AdminUrl,
        /// The cause.
        cause: String,
        /// What to do.
        advice: &'static str,
    },
    /// The proxy refuses the request.
    #[error("{url} answers {status}: {text}{advice}")]
    Refused {
        /// The proxy.
        url: AdminUrl,
        /// The status of the answer.
        status: StatusCode,
        /// The text of the answer.
        text: String,
        /// What to do. Empty if the answer says that.
        advice: &'static str,
    },
    /// The answer is not the status of a proxy.
    #[error("read the status of {url}: is this the admin port of a buildkit-lb?")]
    Unreadable {
        /// The proxy.
        url: AdminUrl,
        /// What is wrong with the answer.
        source: serde_json::Error,
    },
    /// The proxy has no pool of this name.
    #[error("{url} has no pool `{pool}`, but {known}")]
    NoPool {
        /// The proxy.
        url: AdminUrl,
        /// The name.
        pool: String,
        /// The names of the pools.
        known: String,
    },
}

impl AskError {
    /// There is no answer.
    pub(super) fn failed(url: AdminUrl, error: &RequestError) -> Self {
        let advice = match error {
            RequestError::Handshake(_) | RequestError::ServerName { .. } => {
                "check the CA certificates in --proxy-tls-dir, and --proxy-tls-server-name"
            }
            RequestError::Exchange(ExchangeError::Connection(_)) if url.is_secured() => {
                "the proxy may take no client without a certificate, or this is no admin port"
            }
            RequestError::Exchange(_) => {
                "is this the admin port of a buildkit-lb, and does it speak TLS (https://)?"
            }
            RequestError::Timeout => {
                "the proxy has accepted the connection, so it may be overloaded"
            }
            _ => "is the proxy running, and is --admin its --admin-listen or --control-listen?",
        };
        Self::Failed { url, cause: chain(error), advice }
    }

    /// The proxy has answered with `status` and `text`.
    pub(super) fn refused(url: AdminUrl, status: StatusCode, text: &str) -> Self {
        let text: String = printable(text.trim()).chars().take(QUOTED).collect();
        let advice = match status {
            StatusCode::UNAUTHORIZED => {
                " (show a token with --token-file FILE, or a certificate with --proxy-tls-dir DIR)"
            }
            StatusCode::FORBIDDEN => {
                " (or ask the control listener with --admin unix:///PATH, which needs neither)"
            }
            StatusCode::BAD_REQUEST if text.contains("HTTP over TLS") => {
                " (ask https:// instead, with the proxy's CA certificates in --proxy-tls-dir DIR)"
            }
            _ => "",
        };
        Self::Refused { url, status, text, advice }
    }
}
