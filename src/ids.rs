//! The ids that tie the calls of a build together, and where in a call each id stands.

use std::{
    fmt,
    hash::{BuildHasher as _, Hash, Hasher},
    sync::{Arc, LazyLock},
};

use foldhash::quality::RandomState;
use http::HeaderMap;
use twox_hash::XxHash3_64;

use crate::identity::Identity;

/// The longest id in bytes; longer ones are refused. BuildKit's ids have 25 characters.
pub const MAX_ID_LEN: usize = 256;

/// The metadata of a Session call that holds the uuid of the session (BuildKit session/session.go).
const SESSION_HEADER: &str = "x-docker-expose-session-uuid";

/// The metadata of an LLBBridge call that holds the ref of the build (BuildKit client/buildid).
const BUILD_HEADER: &str = "buildkit-controlapi-buildid";

/// The ref of a build or the digest of a blob, together with its owner.
///
/// The owner is part of the id. So a client that asks for what belongs to another owner asks for something that
/// does not exist, whatever method it calls. All clients without identity are one owner.
#[derive(Clone, PartialEq, Eq)]
pub struct Id {
    /// The hash of the rest. A short build looks its two ids up some eighty times.
    hash: u64,
    bytes: Arc<[u8]>,
    owner: Option<Arc<Identity>>,
}

impl Id {
    /// The id `bytes` of `owner`. `None` if `bytes` is empty or longer than [`MAX_ID_LEN`].
    pub fn new(bytes: &[u8], owner: Option<&Arc<Identity>>) -> Option<Self> {
        // Copied, because an id outlives the message that contains it.
        let fits = (1..=MAX_ID_LEN).contains(&bytes.len());
        fits.then(|| Self::with(bytes.into(), owner.cloned()))
    }

    fn with(bytes: Arc<[u8]>, owner: Option<Arc<Identity>>) -> Self {
        // Its seeds are random, because clients choose ids.
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);
        let hash = HASHER.hash_one((&bytes, &owner));
        Self { hash, bytes, owner }
    }

    /// The bytes of the id, without the owner.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of the id, without the owner and without a copy.
    pub fn shared_bytes(&self) -> Arc<[u8]> {
        Arc::clone(&self.bytes)
    }

    /// The owner. `None` if it is the owner of all clients without identity.
    pub fn owner(&self) -> Option<&Arc<Identity>> {
        self.owner.as_ref()
    }

    /// The id that has the same bytes and belongs to `owner`.
    pub fn of(&self, owner: Option<&Arc<Identity>>) -> Self {
        Self::with(Arc::clone(&self.bytes), owner.cloned())
    }
}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.bytes) {
            Ok(plain) if self.bytes.iter().all(|byte| is_plain(*byte)) => f.write_str(plain),
            _ => String::from_utf8_lossy(&self.bytes).escape_debug().fmt(f),
        }
    }
}

/// Whether text shows `byte` as it is.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte)
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The uuid of a session, as the client chose it, together with its owner.
///
/// Whoever knows the uuid can build from the client's directory and with the client's credentials. So logs show
/// twelve digits of its hash: they tell sessions apart, and are too few to find the uuid.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Id);

impl SessionId {
    /// The uuid `bytes` of `owner`. `None` if `bytes` is empty or longer than [`MAX_ID_LEN`].
    pub fn new(bytes: &[u8], owner: Option<&Arc<Identity>>) -> Option<Self> {
        Id::new(bytes, owner).map(Self)
    }

    /// The uuid as a plain id, which shows all of its bytes when it is printed.
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

/// A W3C trace id, together with its owner. All calls of one `buildctl build` or `buildx bake` have the same.
///
/// A trace id is no secret, so the same one sent by another owner counts as a different trace.
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

/// The keys under which the directory keeps bindings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindingKey {
    /// The uuid of a session.
    Session(SessionId),
    /// The ref of a build.
    Build(Id),
    /// The ref of a build that came on this connection while another build had the same ref.
    Namesake(Id, u64),
    /// The trace of a client.
    Trace(TraceId),
    /// The trace of a client, on one of its connections.
    TraceOnConnection(TraceId, u64),
    /// The connection of a client that sends no trace.
    Connection(u64),
    /// The digest of a blob in the content store of a daemon.
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

/// The session that a Session call of `owner` opens.
pub fn session(headers: &HeaderMap, owner: Option<&Arc<Identity>>) -> Option<SessionId> {
    headers.get(SESSION_HEADER).and_then(|value| SessionId::new(value.as_bytes(), owner))
}

/// Replaces the uuid that a Session call opens with a random one that nobody knows.
pub fn hide_session(headers: &mut HeaderMap) {
    let uuid = format!("{:032x}", rand::random::<u128>());
    if let Ok(uuid) = uuid.try_into() {
        headers.insert(SESSION_HEADER, uuid);
    }
}

/// The build that an LLBBridge call of `owner` belongs to.
pub fn build(headers: &HeaderMap, owner: Option<&Arc<Identity>>) -> Option<Id> {
    headers.get(BUILD_HEADER).and_then(|value| Id::new(value.as_bytes(), owner))
}

/// The trace id in the `traceparent` header of a call of `owner` (W3C Trace Context, version 00). `None` if it is
/// missing, malformed or all zero.
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
