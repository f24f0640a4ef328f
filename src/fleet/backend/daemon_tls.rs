//! How the proxy speaks TLS with one daemon.

use std::sync::Arc;

use crate::{fleet::Endpoint, tls};

/// The TLS of the connections to one daemon, which share their sessions.
#[derive(Debug)]
pub struct Tls {
    client: Arc<tls::Client>,
    server_name: Arc<str>,
    sessions: tls::Sessions,
}

impl Tls {
    pub(super) fn new(client: &Arc<tls::Client>, endpoint: &Endpoint) -> Self {
        let server_name = client.server_name(&endpoint.name, &endpoint.server_name);
        Self { client: Arc::clone(client), server_name, sessions: tls::Sessions::default() }
    }

    /// The TLS configuration for a new connection.
    pub fn config(&self) -> Arc<rustls::ClientConfig> {
        self.client.config(&self.sessions)
    }

    /// The name that the daemon's certificate must have.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }
}
