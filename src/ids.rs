//! The ids that tie a build's calls together, and where they stand.

use std::{fmt, sync::Arc};

use http::HeaderMap;
use twox_hash::XxHash3_64;

use crate::identity::Identity;

/// Longer ids are refused: BuildKit's have 25 characters.
pub const MAX_ID_LEN: usize = 256;

/// Metadata of Control/Session that holds the session's uuid (BuildKit session/session.go).
const SESSION_HEADER: &str = "x-docker-expose-session-uuid";

/// Metadata of every LLBBridge call that holds the build's ref (BuildKit client/buildid).
const BUILD_HEADER: &str = "buildkit-controlapi-buildid";

/// A build's ref or a blob's digest, among those of one owner.
///
/// The owner is part of the id: whoever asks for what another one has asks for something that is not there, whatever
/// method it is. All clients without a name are one owner.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Id {
    bytes: Arc<[u8]>,
    owner: Option<Arc<Identity>>,
}

impl Id {
    /// `bytes` as an id of `owner`'s, or `None` if empty or longer than [`MAX_ID_LEN`].
    pub fn new(bytes: &[u8], owner: Option<&Arc<Identity>>) -> Option<Self> {
        // Copied: an id outlives the message it stood in.
        let fits = (1..=MAX_ID_LEN).contains(&bytes.len());
        fits.then(|| Self { bytes: bytes.into(), owner: owner.cloned() })
    }

    /// The id's bytes, which are not all of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same, without a copy.
    pub fn shared_bytes(&self) -> Arc<[u8]> {
        Arc::clone(&self.bytes)
    }

    /// Whose it is.
    pub fn owner(&self) -> Option<&Arc<Identity>> {
        self.owner.as_ref()
    }

    /// The same bytes as an id of `owner`'s.
    pub fn of(&self, owner: Option<&Arc<Identity>>) -> Self {
        Self { bytes: Arc::clone(&self.bytes), owner: owner.cloned() }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.bytes).escape_debug().fmt(f)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A session's uuid, as the client chose it, among those of one owner.
///
/// Whoever knows it can build from the client's directory and with its credentials. So it is shown as
/// digits that tell one session from another and are too few to find the uuid by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Id);

impl SessionId {
    /// `bytes` as an id of `owner`'s, or `None` if empty or longer than [`MAX_ID_LEN`].
    pub fn new(bytes: &[u8], owner: Option<&Arc<Identity>>) -> Option<Self> {
        Id::new(bytes, owner).map(Self)
    }

    /// The uuid among those of all owners.
    pub fn as_id(&self) -> &Id {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", XxHash3_64::oneshot(self.0.as_bytes()) >> 16)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// W3C trace id, among those of one owner: the same for all calls of one `buildctl build` or `buildx bake`.
///
/// A trace is public, so that of another owner is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId {
    id: [u8; 16],
    owner: u64,
}

impl TraceId {
    /// The trace `id` of `owner`.
    pub fn new(id: [u8; 16], owner: Option<&Arc<Identity>>) -> Self {
        Self { id, owner: owner.map_or(0, |owner| owner.tag()) }
    }
}

/// What the directory knows a binding by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindingKey {
    /// A session.
    Session(SessionId),
    /// A build's ref.
    Build(Id),
    /// The ref of a build that came on this connection while another one had the same ref.
    Namesake(Id, u64),
    /// The client's trace.
    Trace(TraceId),
    /// The client's trace, on one downstream connection.
    TraceOnConnection(TraceId, u64),
    /// A downstream connection whose client sends no trace.
    Connection(u64),
    /// A blob in a daemon's content store.
    Digest(Id),
}

impl fmt::Display for BindingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(id) => id.fmt(f),
            Self::Build(id) | Self::Namesake(id, _) | Self::Digest(id) => id.fmt(f),
            Self::Trace(trace) | Self::TraceOnConnection(trace, _) => {
                write!(f, "{:032x}", u128::from_be_bytes(trace.id))
            }
            Self::Connection(number) => number.fmt(f),
        }
    }
}

/// The session that a Session stream of `owner`'s opens.
pub fn session(headers: &HeaderMap, owner: Option<&Arc<Identity>>) -> Option<SessionId> {
    headers.get(SESSION_HEADER).and_then(|value| SessionId::new(value.as_bytes(), owner))
}

/// Has the Session stream open a session whose uuid nobody knows.
pub fn hide_session(headers: &mut HeaderMap) {
    let uuid = format!("{:032x}", rand::random::<u128>());
    if let Ok(uuid) = uuid.try_into() {
        headers.insert(SESSION_HEADER, uuid);
    }
}

/// The build that an LLBBridge call of `owner`'s belongs to.
pub fn build(headers: &HeaderMap, owner: Option<&Arc<Identity>>) -> Option<Id> {
    headers.get(BUILD_HEADER).and_then(|value| Id::new(value.as_bytes(), owner))
}

/// The trace id of `traceparent` (W3C Trace Context, version 00), unless all zero, of a call of `owner`'s.
pub fn trace(headers: &HeaderMap, owner: Option<&Arc<Identity>>) -> Option<TraceId> {
    let value = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = value.split('-');
    let (_version, trace) = (parts.next()?, parts.next()?);
    if trace.len() != 32 || !trace.is_ascii() {
        return None;
    }
    let id = u128::from_str_radix(trace, 16).ok()?;
    (id != 0).then(|| TraceId::new(id.to_be_bytes(), owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_id_is_read_or_absent_but_never_a_panic() {
        let trace = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("traceparent", value.parse().expect("a header value"));
            trace(&headers, None)
        };
        let id = trace("00-30809fa7abad6f3c2d9a18a304e90d7f-0102030405060708-01").expect("valid");
        assert_eq!(id.id[..2], [0x30, 0x80]);
        for bad in ["", "00", "00-xyz-1-1", "00-00000000000000000000000000000000-1-01"] {
            assert_eq!(trace(bad), None, "{bad}");
        }
        assert_eq!(
            trace("00-+0809fa7abad6f3c2d9a18a304e90d7f-1-01").map(|id| id.id[0]),
            Some(0x00)
        );
    }

    #[test]
    fn a_session_is_shown_as_digits_that_do_not_tell_its_id() {
        let id = |text: &str| SessionId::new(text.as_bytes(), None).expect("valid");
        let shown = [id("7zucm43h0qiq2vm5ixf3kkhl1").to_string(), id("other").to_string()];
        assert!(shown.iter().all(|text| text.len() == 12 && !text.contains("7zu")), "{shown:?}");
        assert_ne!(shown[0], shown[1]);
        let key = BindingKey::Session(id("other"));
        assert_eq!(
            (key.to_string(), format!("{key:?}")),
            (shown[1].clone(), format!("Session({})", shown[1]))
        );
    }

    #[test]
    fn ids_are_bounded() {
        let id = |bytes: &[u8]| Id::new(bytes, None);
        assert!(id(b"").is_none());
        assert!(id(&[b'x'; MAX_ID_LEN]).is_some());
        assert!(id(&[b'x'; MAX_ID_LEN + 1]).is_none());
        assert_eq!(id(b"a\n\xff").expect("valid").to_string(), "a\\n\u{fffd}");
    }

    #[test]
    fn what_two_owners_call_alike_is_not_the_same() {
        let [a, b] = ["a", "b"].map(|name| Arc::new(Identity::named(name)));
        let owners = [None, Some(&a), Some(&b)];
        for (index, owner) in owners.into_iter().enumerate() {
            let others = owners.into_iter().enumerate().filter(|(other, _)| *other != index);
            for (_, other) in others {
                assert_ne!(Id::new(b"r", owner), Id::new(b"r", other));
                assert_ne!(SessionId::new(b"s", owner), SessionId::new(b"s", other));
                assert_ne!(TraceId::new([1; 16], owner), TraceId::new([1; 16], other));
            }
        }
        let again = Arc::new(Identity::named("a"));
        assert_eq!(Id::new(b"r", Some(&a)), Id::new(b"r", Some(&again)));
        assert_eq!(TraceId::new([1; 16], Some(&a)), TraceId::new([1; 16], Some(&again)));
    }

    #[test]
    fn a_hidden_session_has_a_uuid_of_its_own() {
        let mut headers = HeaderMap::new();
        headers
            .insert(SESSION_HEADER, "7zucm43h0qiq2vm5ixf3kkhl1".parse().expect("a header value"));
        hide_session(&mut headers);
        let hidden = session(&headers, None).expect("a session");
        hide_session(&mut headers);
        assert_eq!(headers.get_all(SESSION_HEADER).iter().count(), 1);
        assert_ne!(Some(hidden), session(&headers, None));
    }
}
