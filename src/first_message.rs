//! Reads the first message of a stream without losing a byte of it, in bounded time and memory.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    error::ProxyError,
    ids::Id,
    wire::{
        self, MAX_MESSAGE_LEN, Payload, WireError,
        fields::{self, Malformed},
    },
};

/// How long a client may take to send its first message: 16 MiB at 2 Mbit/s.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Memory for messages that are still arriving, over all clients, in KiB: sixteen of the largest.
const BUDGET_KIB: usize = 256 << 10;

/// A message below this is not charged to the budget; a usual Solve has one or two KiB.
const UNCHARGED_LEN: usize = 64 << 10;

/// A message above this is read apart: to walk over 256 KiB of the smallest fields takes a millisecond.
const LARGE_LEN: usize = 256 << 10;

/// Large messages that are read at once. Each may take a CPU for a tenth of a second, and
/// [`MAX_MESSAGE_LEN`] of memory if it is compressed.
static LARGE_AT_ONCE: Semaphore = Semaphore::const_new(2);

/// The start of a body: at least one whole message.
#[derive(Debug)]
pub struct FirstMessage {
    bytes: Bytes,
    _charged: Option<OwnedSemaphorePermit>,
}

impl FirstMessage {
    /// The message with its prefix (and whatever came with it).
    pub fn framed(&self) -> Bytes {
        self.bytes.clone()
    }

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
    /// The message is not what `read` expects, or cannot be unpacked.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&[u8]) -> Result<T, Malformed> + Send + 'static,
    ) -> Result<T, WireError> {
        let payload = wire::payload(&self.bytes)?;
        match payload {
            Payload::Plain(plain) if plain.len() <= LARGE_LEN => return Ok(read(&plain)?),
            _ => {}
        }
        let _permit = LARGE_AT_ONCE.acquire().await;
        let reading = tokio::task::spawn_blocking(move || match payload {
            Payload::Plain(plain) => Ok(read(&plain)?),
            Payload::Gzip(packed) => Ok(read(&wire::unpack(&packed)?)?),
        });
        // It does not panic, and is not cancelled while the process runs.
        reading.await.unwrap_or(Err(WireError::Malformed(Malformed)))
    }

    /// The id in its first field: the ref of StatusRequest and UpdateBuildHistoryRequest, the digest of
    /// InfoRequest and ReadContentRequest.
    pub async fn first_id(&self) -> Option<Id> {
        self.read(|request| Ok(Id::new(fields::text(request, 1)?))).await.ok().flatten()
    }
}

/// Reads first messages within one budget.
#[derive(Debug, Clone)]
pub struct Reader {
    budget: Arc<Semaphore>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { budget: Arc::new(Semaphore::new(BUDGET_KIB)) }
    }
}

impl Reader {
    /// The first message of `body`, and the body from there on.
    pub async fn first_message(
        &self,
        body: Incoming,
    ) -> Result<(FirstMessage, Incoming), ProxyError> {
        tokio::time::timeout(MESSAGE_TIMEOUT, self.read(body))
            .await
            .unwrap_or(Err(ProxyError::SolveTimeout(MESSAGE_TIMEOUT)))
    }

    async fn read(&self, mut body: Incoming) -> Result<(FirstMessage, Incoming), ProxyError> {
        let mut received = Bytes::new();
        let mut charged = None;
        loop {
            let len = wire::first_message_len(&received, MAX_MESSAGE_LEN)
                .map_err(|error| ProxyError::from_solve(&error))?;
            match len {
                Some(len) if received.len() >= len => {
                    return Ok((FirstMessage { bytes: received, _charged: charged }, body));
                }
                Some(len) if len > UNCHARGED_LEN && charged.is_none() => {
                    charged = Some(self.charge(len)?);
                }
                _ => {}
            }
            let Some(frame) = body.frame().await else {
                let got = received.len();
                return Err(ProxyError::from_solve(&WireError::Truncated { got }));
            };
            // Whoever reset the stream reads no answer; the text is for the log.
            let frame = frame.map_err(|error| ProxyError::BadSolve(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                received = join(received, data, len);
            }
        }
    }

    fn charge(&self, len: usize) -> Result<OwnedSemaphorePermit, ProxyError> {
        let kib = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX);
        Arc::clone(&self.budget)
            .try_acquire_many_owned(kib)
            .ok()
            .ok_or(ProxyError::Limit("too many large requests are arriving at once"))
    }
}

/// Appends without copying what has been copied before.
fn join(received: Bytes, data: Bytes, expected: Option<usize>) -> Bytes {
    if received.is_empty() {
        return data;
    }
    let mut joined = received.try_into_mut().unwrap_or_else(|shared| {
        let mut joined = BytesMut::with_capacity(expected.unwrap_or(0).max(shared.len()));
        joined.extend_from_slice(&shared);
        joined
    });
    joined.extend_from_slice(&data);
    joined.freeze()
}
