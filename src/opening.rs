//! What a client begins with: HTTP/2, TLS, or something that no port of the proxy speaks.

use crate::{error::ConnectionErrorReason, io::PREFACE};

/// As much of what came as a log record shows.
const SHOWN_LEN: usize = 24;

/// How a PROXY header of version 2 begins (HAProxy's PROXY protocol, section 2.2).
const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What tells a person with a browser or curl where they are.
pub const HTTP1_ANSWER: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\ncontent-length: 35\r\nconnection: close\r\n\r\n\
    This port speaks gRPC over HTTP/2.\n";

/// The same, where they did not begin with TLS.
pub const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: text/plain\r\ncontent-length: 45\r\nconnection: close\r\n\r\n\
    This port speaks gRPC over HTTP/2, with TLS.\n";

/// What the first bytes of a connection are.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// The client has gone without a byte, as a TCP health check does.
    Nothing,
    Http2,
    Http1,
    Tls,
    ProxyHeader,
    Other,
}

impl Opening {
    /// What begins with `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let word = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
        if bytes.is_empty() {
            Self::Nothing
        } else if bytes.starts_with(PREFACE) || PREFACE.starts_with(bytes) {
            Self::Http2
        } else if bytes.starts_with(b"PROXY ") || bytes.starts_with(PROXY_V2) {
            Self::ProxyHeader
        } else if bytes.starts_with(&[0x16, 3]) {
            // A record of a handshake, of any version (RFC 8446 section 5.1).
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

    /// The reason that the connection's end is counted under, where it is not what the port speaks.
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

/// The beginning of `bytes`, as a log record can show it.
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
