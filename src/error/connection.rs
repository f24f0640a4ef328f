//! Why a connection of a client ended, or was refused.

use crate::label::label_set;

label_set! {
    /// The kinds of [`ConnectionError`], by which they are counted and logged.
    pub enum ConnectionErrorReason {
        /// The socket failed.
        Io = "io",
        /// The client ended the connection with an error.
        Goaway = "goaway",
        /// The client broke the rules of HTTP/2.
        Protocol = "protocol",
        /// The client did not send its HTTP/2 preface and SETTINGS in time.
        HandshakeTimeout = "handshake_timeout",
        /// The connection was idle, and another client needed its permit.
        Evicted = "evicted",
        /// There was no permit for the connection.
        TooManyConnections = "too_many_connections",
        /// The client speaks TLS on a port without TLS.
        Tls = "tls",
        /// The client speaks HTTP/1.
        Http1 = "http1",
        /// The client sends a PROXY header, and none is expected.
        ProxyHeader = "proxy_header",
        /// The client speaks HTTP/2 without TLS on a port with TLS.
        PlainHttp2 = "plain_http2",
        /// The client speaks something else.
        NotHttp2 = "not_http2",
        /// A hop sends no PROXY header, and one is required.
        ProxyHeaderMissing = "proxy_header_missing",
        /// A hop sends a PROXY header that cannot be read.
        ProxyHeaderBroken = "proxy_header_broken",
        /// A hop did not send its PROXY header in time.
        ProxyHeaderTimeout = "proxy_header_timeout",
        /// The client closed the connection during the TLS handshake.
        TlsAborted = "tls_aborted",
        /// The TLS handshake took too long.
        TlsTimeout = "tls_timeout",
        /// Too many TLS handshakes were under way, and this client had most of them.
        TlsBusy = "tls_busy",
        /// The client shows no certificate, and one is required.
        TlsNoCertificate = "tls_no_certificate",
        /// The client's certificate has no name by which the client can be identified.
        TlsNoName = "tls_no_name",
        /// The client ended the TLS handshake with an alert.
        TlsRefused = "tls_refused",
        /// Client and proxy have no TLS version or cipher in common.
        TlsIncompatible = "tls_incompatible",
        /// The client broke the rules of TLS.
        TlsProtocol = "tls_protocol",
        /// The certificate is signed by an authority that the proxy does not trust.
        TlsUnknownCa = "tls_unknown_ca",
        /// The certificate has expired.
        TlsExpired = "tls_expired",
        /// The certificate is not valid yet.
        TlsNotYetValid = "tls_not_yet_valid",
        /// The certificate is for another name.
        TlsWrongName = "tls_wrong_name",
        /// The certificate is not meant for this side of a connection.
        TlsWrongPurpose = "tls_wrong_purpose",
        /// The certificate cannot be used for another cause.
        TlsBadCertificate = "tls_bad_certificate",
    }
}

/// Why a connection has ended, or its handshake has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionError {
    /// The kind of error, for metrics.
    pub reason: ConnectionErrorReason,
    /// The error in a sentence, for people.
    pub text: String,
}

impl ConnectionError {
    /// An error for `reason`, described by `text`.
    pub fn new(reason: ConnectionErrorReason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}
