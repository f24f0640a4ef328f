//! Decides who caused a call to end without an answer of its daemon. No other place decides it.
//!
//! Only the failure of a connection counts as a fault of the daemon. A client can make its own calls fail in many ways,
//! through the proxy or through the HTTP/2 library. A failure that is not certainly the daemon's ejects no backend.

use std::error::Error;

use h2::Reason;

/// Why a call on a connection to a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The daemon reset the call. The client gets the same reset.
    Reset(Reason),
    /// The proxy reset the call, because its client did or went away.
    Cancelled,
    /// The connection broke, which is a fault of the daemon.
    Lost,
    /// The HTTP/2 library refused the answer or the request.
    Refused,
}

impl Failure {
    /// What `error`, on a connection to a daemon, means.
    pub fn of(error: &h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_remote() => Self::said_by_daemon(error, reason),
            Some(reason) if error.is_library() && error.is_go_away() => Self::found_by_us(reason),
            // The library ended the stream of this call alone.
            Some(_) if error.is_library() => Self::Refused,
            // Neither the daemon nor the library has reported this error.
            Some(_) => Self::Cancelled,
            None if error.is_io() => Self::Lost,
            // No connection would have accepted the request.
            None => Self::Refused,
        }
    }

    /// A stream above the last id of a GOAWAY without an error counts as refused. The daemon has not seen it, and a
    /// gRPC client sends a refused call again.
    fn said_by_daemon(error: &h2::Error, reason: Reason) -> Self {
        match reason {
            reason if error.is_reset() => Self::Reset(reason),
            Reason::NO_ERROR => Self::Reset(Reason::REFUSED_STREAM),
            _ => Self::Lost,
        }
    }

    /// The library closes a connection if the other side does not speak HTTP/2, or if a limit of the library is
    /// exceeded. What a daemon sends in answer to one client can exceed a limit.
    fn found_by_us(reason: Reason) -> Self {
        match reason {
            Reason::PROTOCOL_ERROR
            | Reason::FRAME_SIZE_ERROR
            | Reason::COMPRESSION_ERROR
            | Reason::FLOW_CONTROL_ERROR => Self::Lost,
            _ => Self::Refused,
        }
    }
}

/// The reason of the RST_STREAM from the other side of a connection, if `error` reports one.
pub fn remote_reset(error: &(dyn Error + 'static)) -> Option<Reason> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(h2) = error.downcast_ref::<h2::Error>() {
            return match Failure::of(h2) {
                Failure::Reset(reason) => Some(reason),
                _ => None,
            };
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_does_not_tell_is_nobodys_fault() {
        let own = h2::Error::from(Reason::CANCEL);
        assert_eq!(Failure::of(&own), Failure::Cancelled);
        assert_eq!(remote_reset(&own), None);
    }

    #[test]
    fn only_nonsense_on_a_connection_is_the_daemons_doing() {
        for code in 0..=20_u32 {
            let lost = matches!(code, 0x1 | 0x3 | 0x6 | 0x9);
            let expected = if lost { Failure::Lost } else { Failure::Refused };
            assert_eq!(Failure::found_by_us(Reason::from(code)), expected, "{code}");
        }
    }
}
