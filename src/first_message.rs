//! Reads the first message of a stream, in bounded time and memory. Every byte can still be sent on unchanged.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Uri, request::Parts};
use http_body_util::BodyExt as _;

use crate::{
    account::{Account, Charge},
    client::Client,
    error::{ProxyError, chain},
    identity::Identity,
    ids::Id,
    received::Received,
    shares::{Limits, Shares},
    wire::{
        self, MAX_MESSAGE_LEN, PREFIX_LEN, Payload, WireError,
        fields::{self, Malformed},
    },
};

/// How long a client may take to send its first message: enough for 16 MiB at 2 Mbit/s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// The size below which a message that arrives in one piece is not charged, because the library holds as much for
/// every stream. A usual Solve has 1 to 2 KiB.
pub const UNCHARGED_LEN: usize = 4 << 10;

/// The size above which a message is read on a thread of its own. To walk over 256 KiB of the smallest fields takes
/// a millisecond.
const LARGE_LEN: usize = 256 << 10;

/// The number of large messages that are read at once, in total and of one address. Each may take a processor for a
/// tenth of a second and, if it is compressed, [`MAX_MESSAGE_LEN`] of memory.
const LARGE_AT_ONCE: Limits = Limits { total: 2, address: 1, connection: 1 };

/// How many bytes of a refused message are looked at. Ids are its first fields.
const START_LEN: usize = 1 << 10;

/// How long the proxy waits for the first bytes of a refused message of which only the prefix has arrived.
const START_TIMEOUT: Duration = Duration::from_secs(1);

/// The method of a call, named by its path.
#[derive(Debug, Clone)]
struct Method(Uri);

impl Method {
    /// The name for an error text. The proxy reads messages of known methods only, so the name is short.
    fn name(&self) -> String {
        self.0.path().rsplit('/').next().unwrap_or_default().to_owned()
    }
}

/// The first bytes of a body: at least one whole message.
#[derive(Debug)]
pub struct FirstMessage {
    bytes: Bytes,
    method: Method,
    charge: Option<Charge>,
    /// Where a large message waits for its turn to be read.
    queue: Option<(Shares, Client)>,
}

impl FirstMessage {
    /// All bytes that were read, to be sent on unchanged.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The result of `read` for the message.
    ///
    /// A message that is large, or that is compressed and may therefore become large, is read on a thread of its
    /// own. On a thread that relays, it would hold up all other streams.
    ///
    /// # Errors
    /// The message is not what `read` expects, or cannot be decompressed, or another client got its memory.
    pub async fn read<T: Send + 'static>(
        &mut self,
        read: impl FnOnce(&[u8]) -> Result<T, Malformed> + Send + 'static,
    ) -> Result<T, ProxyError> {
        let method = &self.method;
        let unreadable = |error| ProxyError::unreadable(method.name(), &error);
        let payload = wire::payload(&self.bytes).map_err(unreadable)?;
        let Some((queue, client)) = &self.queue else {
            return match payload {
                Payload::Plain(plain) => read(&plain).map_err(|error| unreadable(error.into())),
                Payload::Gzip(packed) => unpacked(&packed, read).map_err(unreadable),
            };
        };
        let mut turn = pin!(queue.take_when_free(client, 1));
        let turn = match &mut self.charge {
            Some(charge) => charge.during(&mut turn).await?,
            None => turn.await,
        };
        let reading = tokio::task::spawn_blocking(move || {
            // Held until the message has been read, even if the client leaves before.
            let _turn = turn;
            match payload {
                Payload::Plain(plain) => Ok(read(&plain)?),
                Payload::Gzip(packed) => unpacked(&packed, read),
            }
        });
        // The task does not panic, and is not cancelled while the process runs.
        reading.await.unwrap_or(Err(WireError::Malformed(Malformed))).map_err(unreadable)
    }

    /// The first field of the message as an id of `owner`: the ref in StatusRequest and UpdateBuildHistoryRequest,
    /// the digest in InfoRequest and ReadContentRequest.
    pub async fn first_id(&mut self, owner: Option<&Arc<Identity>>) -> Option<Id> {
        let owner = owner.cloned();
        let id = move |request: &[u8]| Ok(Id::new(fields::text(request, 1)?, owner.as_ref()));
        self.read(id).await.ok().flatten()
    }

    /// The result of `work`, while the message waits to be sent on.
    ///
    /// # Errors
    /// Another client got the memory of the message.
    pub async fn during<T>(
        &mut self,
        work: impl Future<Output = T> + Unpin,
    ) -> Result<T, ProxyError> {
        match &mut self.charge {
            Some(charge) => charge.during(work).await,
            None => Ok(work.await),
        }
    }
}

fn unpacked<T>(
    packed: &[u8],
    read: impl FnOnce(&[u8]) -> Result<T, Malformed>,
) -> Result<T, WireError> {
    Ok(read(&wire::unpack(packed)?)?)
}

/// Why a message was not read, and how it begins.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Unread {
    /// The error for the client.
    pub error: ProxyError,
    /// The first bytes of the message, without the prefix.
    pub start: Bytes,
}

impl From<Unread> for ProxyError {
    fn from(unread: Unread) -> Self {
        unread.error
    }
}

/// Reads first messages, and charges them to one account.
#[derive(Debug, Clone)]
pub struct Reader {
    account: Account,
    queue: Shares,
}

impl Reader {
    /// A reader that charges `account`.
    pub fn new(account: Account) -> Self {
        Self { account, queue: Shares::new(LARGE_AT_ONCE) }
    }

    /// The account of the memory for data that waits to be sent on.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The first message of `body`, and the rest of the body. `parts` is the metadata of the call.
    ///
    /// # Errors
    /// The message does not arrive in time, is too large or malformed, or there is no memory for it.
    pub async fn first_message(
        &self,
        parts: &Parts,
        client: &Client,
        mut body: Received,
    ) -> Result<(FirstMessage, Received), Unread> {
        let method = Method(parts.uri.clone());
        let mut arriving = Arriving { bytes: Bytes::new(), charge: self.account.open(client) };
        let reading = tokio::time::timeout(MESSAGE_TIMEOUT, arriving.whole(&mut body, &method));
        let timeout = |_elapsed| {
            Err(ProxyError::MessageTimeout { method: method.name(), limit: MESSAGE_TIMEOUT })
        };
        if let Err(error) = reading.await.unwrap_or_else(timeout) {
            return Err(Unread { error, start: arriving.start() });
        }
        let Arriving { bytes, charge } = arriving;
        let apart = bytes.len() > LARGE_LEN || bytes.first() != Some(&0);
        let message = FirstMessage {
            bytes,
            method,
            charge: charge.is_used().then_some(charge),
            queue: apart.then(|| (self.queue.clone(), client.clone())),
        };
        Ok((message, body))
    }
}

/// The part of a message that has arrived, and its charge.
struct Arriving {
    bytes: Bytes,
    charge: Charge,
}

impl Arriving {
    /// Completes when the whole message has arrived.
    async fn whole(&mut self, body: &mut Received, method: &Method) -> Result<(), ProxyError> {
        let unreadable = |error| ProxyError::unreadable(method.name(), &error);
        loop {
            let len = match wire::first_message_len(&self.bytes, MAX_MESSAGE_LEN) {
                Err(error @ WireError::TooLarge { .. }) if self.bytes.len() == PREFIX_LEN => {
                    // The ids are in the next frame.
                    let next = tokio::time::timeout(START_TIMEOUT, body.frame()).await;
                    if let Ok(Some(Ok(frame))) = next
                        && let Ok(data) = frame.into_data()
                    {
                        self.bytes = joined(std::mem::take(&mut self.bytes), data, 0);
                    }
                    return Err(unreadable(error));
                }
                len => len.map_err(unreadable)?,
            };
            if len.is_some_and(|len| self.bytes.len() >= len) {
                return Ok(());
            }
            if !self.bytes.is_empty() && !self.charge.is_used() {
                self.charge.add_soon(self.bytes.len()).await?;
            }
            let Some(frame) = self.charge.during(body.frame()).await? else {
                let got = self.bytes.len();
                return Err(unreadable(WireError::Truncated { got }));
            };
            // A client that resets a stream reads no answer, so this text is for the log.
            let frame = frame.map_err(|error| ProxyError::BadMessage {
                method: method.name(),
                cause: chain(&error),
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if self.charge.is_used() || data.len() > UNCHARGED_LEN {
                self.charge.add_soon(data.len()).await?;
            }
            self.bytes = joined(std::mem::take(&mut self.bytes), data, len.unwrap_or(0));
        }
    }

    fn start(&self) -> Bytes {
        let len = self.bytes.len().min(START_LEN);
        self.bytes.slice(PREFIX_LEN.min(len)..len)
    }
}

/// Appends `data` to `received`, and copies each byte at most once more. Allocates for twice the bytes that have
/// arrived, never for all that the prefix announces (`expected`).
pub fn joined(received: Bytes, data: Bytes, expected: usize) -> Bytes {
    if received.is_empty() {
        return data;
    }
    let mut joined = received.try_into_mut().unwrap_or_else(|shared| {
        let room = (2 * (shared.len() + data.len())).min(expected.max(shared.len() + data.len()));
        let mut joined = BytesMut::with_capacity(room);
        joined.extend_from_slice(&shared);
        joined
    });
    joined.extend_from_slice(&data);
    joined.freeze()
}
