//! What a client speaks, told by its first bytes: HTTP/2, TLS, or something that no port of the proxy speaks.

use crate::{error::ConnectionErrorReason, io::PREFACE};

/// The number of bytes that a log record shows.
const SHOWN_LEN: usize = 24;

/// The first bytes of a PROXY header of version 2 (HAProxy's PROXY protocol, section 2.2).
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The answer to HTTP/1. It tells a person with a browser or curl what this port is for.
pub const HTTP1_ANSWER: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\ncontent-length: 35\r\nconnection: close\r\n\r\n\
    This port speaks gRPC over HTTP/2.\n";

/// The answer to HTTP/1 on a port that speaks TLS.
pub const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain\r\ncontent-length: 45\r\nconnection: close\r\n\r\n\
    This port speaks gRPC over HTTP/2, with TLS.\n";

/// The protocol that the first bytes of a connection belong to.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// The client has closed the connection without sending a byte, as a TCP health check does.
    Nothing,
    Http2,
    Http1,
    Tls,
    ProxyHeader,
    Other,
}

impl Opening {
    /// The protocol of a connection that begins with `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let word = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        if bytes.is_empty() {
            Self::Nothing
        } else if bytes.starts_with(PREFACE) || PREFACE.starts_with(bytes) {
            Self::Http2
        } else if bytes.starts_with(b"PROXY ") || bytes.starts_with(PROXY_V2) {
            Self::ProxyHeader
        } else if bytes.starts_with(&[0x16, 3]) {
            // The first two bytes of any TLS handshake, whatever its version (RFC 8446 section 5.1).
            Self::Tls
        } else if (3..=10).contains(&word)
            && bytes.get(word) == Some(&b' ')
            && !bytes.starts_with(b"PRI ")
        {
            Self::Http1
        } else {
            Self::Other
        }
    }

    /// The reason for ending the connection, if the port does not speak this protocol.
    pub fn reason(self) -> ConnectionErrorReason {
        match self {
            Self::Tls => ConnectionErrorReason::Tls,
            Self::Http1 => ConnectionErrorReason::Http1,
            Self::ProxyHeader => ConnectionErrorReason::ProxyHeader,
            Self::Http2 => ConnectionErrorReason::PlainHttp2,
            Self::Nothing | Self::Other => ConnectionErrorReason::NotHttp2,
        }
    }
}

/// The protocol of a connection that begins with `bytes`, and how it begins, for the record about a stranger. The text is
/// empty for the protocol that is `expected`, of which no such record is written.
pub fn inspect(bytes: &[u8], expected: Opening) -> (Opening, String) {
    let opening = Opening::of(bytes);
    (opening, if opening == expected { String::new() } else { shown(bytes) })
}

/// The first bytes of `bytes` as printable text for a log record.
pub fn shown(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(SHOWN_LEN)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_speaks_is_told_by_its_first_bytes() {
        for (bytes, opening) in [
            (&b""[..], Opening::Nothing),
            (b"P", Opening::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Opening::Http2),
            (b"GET / HTTP/1.1\r\n", Opening::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Opening::Http1),
            (b"PRI /x HTTP/1.1", Opening::Other),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", Opening::ProxyHeader),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Opening::ProxyHeader),
            (b"\x16\x03\x01\x02\0\x01", Opening::Tls),
            (b"SSH-2.0-x", Opening::Other),
            (b"\0\0", Opening::Other),
        ] {
            assert_eq!(Opening::of(bytes), opening, "{}", shown(bytes));
        }
        assert_eq!(shown(b"\x16a\n"), "\\x16a\\n");
    }

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        for answer in [HTTP1_ANSWER, PLAIN_ANSWER] {
            let text = std::str::from_utf8(answer).expect("ASCII");
            let (head, body) = text.split_once("\r\n\r\n").expect("a body");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        }
    }
}
