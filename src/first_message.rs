//! Reads the first message of a stream without losing a byte of it, in bounded time and memory.

use std::{sync::Arc, time::Duration};

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

/// How long a client may take to send its first message: 16 MiB at 2 Mbit/s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// What came at once and is below this is not charged: the library holds as much for every stream. A usual
/// Solve has one or two KiB.
pub const UNCHARGED_LEN: usize = 4 << 10;

/// A message above this is read apart: to walk over 256 KiB of the smallest fields takes a millisecond.
const LARGE_LEN: usize = 256 << 10;

/// Large messages that are read at once, and of these, those of one address. Each may take a processor
/// for a tenth of a second, and [`MAX_MESSAGE_LEN`] of memory if it is compressed.
const LARGE_AT_ONCE: Limits = Limits { total: 2, address: 1, connection: 1 };

/// What is looked at of a message that is not read: ids are its first fields.
const START_LEN: usize = 1 << 10;

/// How long the start of a message that is not read is waited for, if only its prefix has come.
const START_TIMEOUT: Duration = Duration::from_secs(1);

/// A call's method, by its path.
#[derive(Debug, Clone)]
struct Method(Uri);

impl Method {
    /// Only for what went wrong: those that are read are known, and so short.
    fn name(&self) -> String {
        self.0.path().rsplit('/').next().unwrap_or_default().to_owned()
    }
}

/// The start of a body: at least one whole message.
#[derive(Debug)]
pub struct FirstMessage {
    bytes: Bytes,
    method: Method,
    charge: Option<Charge>,
    /// Where a large one waits for its turn to be read.
    queue: Option<(Shares, Client)>,
}

impl FirstMessage {
    /// Everything read, to be sent on unchanged.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// What `read` makes of the message.
    ///
    /// A large one, and one that is compressed and so may become large, is read apart from the threads
    /// that relay: it would hold up every other stream for as long as it takes.
    ///
    /// # Errors
    /// The message is not what `read` expects, or cannot be unpacked; or its place in memory is another
    /// client's now.
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
        let turn = queue.take_when_free(client, 1);
        let turn = match &mut self.charge {
            Some(charge) => charge.during(turn).await?,
            None => turn.await,
        };
        let reading = tokio::task::spawn_blocking(move || {
            // Until the end, however long the client stays.
            let _turn = turn;
            match payload {
                Payload::Plain(plain) => Ok(read(&plain)?),
                Payload::Gzip(packed) => unpacked(&packed, read),
            }
        });
        // It does not panic, and is not cancelled while the process runs.
        reading.await.unwrap_or(Err(WireError::Malformed(Malformed))).map_err(unreadable)
    }

    /// The id of `owner`'s in its first field: the ref of StatusRequest and UpdateBuildHistoryRequest, the digest
    /// of InfoRequest and ReadContentRequest.
    pub async fn first_id(&mut self, owner: Option<&Arc<Identity>>) -> Option<Id> {
        let owner = owner.cloned();
        let id = move |request: &[u8]| Ok(Id::new(fields::text(request, 1)?, owner.as_ref()));
        self.read(id).await.ok().flatten()
    }

    /// What `work` gives while the message waits to be sent on.
    ///
    /// # Errors
    /// The message's place in memory is another client's now.
    pub async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, ProxyError> {
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
    /// What the client is told.
    pub error: ProxyError,
    /// Its first bytes, without the prefix.
    pub start: Bytes,
}

impl From<Unread> for ProxyError {
    fn from(unread: Unread) -> Self {
        unread.error
    }
}

/// Reads first messages on one account.
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

    /// The account of what waits to be sent on.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The first message of `body`, and the body from there on; `parts` is its metadata.
    ///
    /// # Errors
    /// It does not come in time, is too large, is no message or finds no place in memory.
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

/// What has come of a message.
struct Arriving {
    bytes: Bytes,
    charge: Charge,
}

impl Arriving {
    /// Completes when the message is whole.
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
            // Whoever reset the stream reads no answer; the text is for the log.
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

/// Appends without copying what has been copied before. Room is made for what has come and as much again,
/// never for all that `expected` announces.
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
