//! The causes of failed TLS handshakes, in words that say what to change.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::HANDSHAKE_TIMEOUT;
use crate::error::{ConnectionError, ConnectionErrorReason as Reason};

/// The error of a handshake with `other`, which is a phrase such as "the client".
pub fn failure(error: &io::Error, other: &str) -> ConnectionError {
    let tls = error.get_ref().and_then(|within| within.downcast_ref::<Error>());
    let (reason, text) = match tls {
        Some(error) => describe(error, other),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            (Reason::TlsAborted, format!("{other} closed the connection in the TLS handshake"))
        }
        None => (Reason::Io, error.to_string()),
    };
    ConnectionError::new(reason, text)
}

/// The error of a handshake that took too long.
pub fn too_slow() -> ConnectionError {
    let text = format!("the TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}");
    ConnectionError::new(Reason::TlsTimeout, text)
}

fn describe(error: &Error, other: &str) -> (Reason, String) {
    match error {
        Error::NoCertificatesPresented => {
            (Reason::TlsNoCertificate, format!("{other} shows no certificate, and one is required"))
        }
        Error::InvalidCertificate(error) => certificate(error, other),
        Error::AlertReceived(alert) => (
            Reason::TlsRefused,
            format!("{other} refuses the TLS handshake: {}", alert_text(*alert)),
        ),
        Error::PeerIncompatible(why) => (
            Reason::TlsIncompatible,
            format!("{other} has no TLS version or cipher in common: {why:?}"),
        ),
        error => (Reason::TlsProtocol, format!("{other} breaks the TLS protocol: {error}")),
    }
}

fn certificate(error: &CertificateError, other: &str) -> (Reason, String) {
    use CertificateError as E;
    match error {
        E::UnknownIssuer | E::BadSignature => (
            Reason::TlsUnknownCa,
            format!("{other}'s certificate is signed by none of the authorities in the CA file"),
        ),
        E::Expired | E::ExpiredContext { .. } => {
            (Reason::TlsExpired, format!("{other}'s certificate has expired"))
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            (Reason::TlsNotYetValid, format!("{other}'s certificate is not valid yet"))
        }
        E::NotValidForName => {
            (Reason::TlsWrongName, format!("{other}'s certificate is for another server name"))
        }
        E::NotValidForNameContext { expected, presented } => {
            let (expected, presented) = (expected.to_str(), presented.join(", "));
            let text = format!("{other}'s certificate is not for `{expected}` but for {presented}");
            (Reason::TlsWrongName, text)
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => (
            Reason::TlsWrongPurpose,
            format!("{other}'s certificate is not meant for this side (extended key usage)"),
        ),
        error => {
            (Reason::TlsBadCertificate, format!("{other}'s certificate cannot be used: {error}"))
        }
    }
}

/// What the other side finds wrong with the proxy's certificate or handshake.
fn alert_text(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let text = match alert {
        A::UnknownCA => "it does not know the authority of this proxy's certificate",
        A::BadCertificate => {
            "it does not take this proxy's certificate, for its name or its authority"
        }
        A::CertificateExpired => "this proxy's certificate has expired or is not valid yet",
        A::CertificateRequired => "it requires a certificate of this proxy",
        A::HandshakeFailure => {
            "it has no TLS version or cipher in common, or requires a certificate"
        }
        other => return format!("{other:?}"),
    };
    text.to_owned()
}
