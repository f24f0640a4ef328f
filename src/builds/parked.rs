//! A call that waits for its build, and the bytes that its client sends meanwhile.

use std::mem;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use crate::{
    account::{Account, Charge, metadata_len},
    client::Client,
    error::ProxyError,
    first_message::{UNCHARGED_LEN, joined},
    received::Received,
    wire::{MAX_MESSAGE_LEN, PREFIX_LEN},
};

/// How many bytes one parked call may send: one message. Flow control keeps the rest with the client.
pub(super) const MAX_PARKED_LEN: usize = PREFIX_LEN + MAX_MESSAGE_LEN;

/// Waits for `outcome` and reads from `body` meanwhile. The bytes that have been read are charged to the account.
/// Unread bytes would stay in the HTTP/2 library, where nothing counts them.
///
/// # Errors
/// The errors of `outcome`, or there is no room for the bytes.
pub(super) async fn parked<T>(
    account: &Account,
    client: &Client,
    body: &mut Received,
    outcome: impl Future<Output = Result<T, ProxyError>> + Unpin,
) -> Result<(T, Bytes), ProxyError> {
    let mut kept = ParkedBytes::new(account, client, MAX_PARKED_LEN);
    let outcome = kept.during(body, outcome).await?;
    Ok((outcome, kept.into_bytes()))
}

/// What the client of a parked call has sent.
#[derive(Debug)]
pub(super) struct ParkedBytes {
    received: Bytes,
    charge: Charge,
    /// How many bytes are read at most.
    limit: usize,
}

/// How a client has ended its side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    HalfClosed,
    Reset,
}

impl ParkedBytes {
    /// No bytes yet, of a call of `client`.
    pub(super) fn new(account: &Account, client: &Client, limit: usize) -> Self {
        Self { received: Bytes::new(), charge: account.open(client), limit }
    }

    /// Charges the metadata of the call as well, if it is large.
    ///
    /// # Errors
    /// There is no room for the metadata.
    pub(super) fn charge_metadata(&mut self, headers: &HeaderMap) -> Result<(), ProxyError> {
        metadata_len(headers).map_or(Ok(()), |len| self.charge.add(len))
    }

    /// Reads from `body` until `outcome` is known.
    ///
    /// # Errors
    /// The errors of `outcome`, or there is no room for the bytes.
    pub(super) async fn during<T>(
        &mut self,
        body: &mut Received,
        mut outcome: impl Future<Output = Result<T, ProxyError>> + Unpin,
    ) -> Result<T, ProxyError> {
        tokio::select! {
            biased;
            outcome = &mut outcome => return outcome,
            ended = self.fill(body) => ended?,
        };
        // After an end or a reset no more bytes come. The body still tells which of the two it was.
        self.charge.during(outcome).await?
    }

    /// Reads from `body` up to the limit, until the client ends its side.
    ///
    /// # Errors
    /// There is no room for the bytes.
    pub(super) async fn fill(&mut self, body: &mut Received) -> Result<Ended, ProxyError> {
        while self.received.len() < self.limit {
            let frame = self.charge.during(body.frame()).await?;
            let Some(Ok(Ok(data))) = frame.map(|frame| frame.map(http_body::Frame::into_data))
            else {
                let half_closed = body.is_end_stream();
                return Ok(if half_closed { Ended::HalfClosed } else { Ended::Reset });
            };
            self.add(data)?;
        }
        self.charge.evicted().await;
        Err(ProxyError::Memory)
    }

    fn add(&mut self, data: Bytes) -> Result<(), ProxyError> {
        let used = self.charge.is_used();
        let new = if used { data.len() } else { self.received.len() + data.len() };
        if used || new > UNCHARGED_LEN {
            self.charge.add(new)?;
        }
        self.received = joined(mem::take(&mut self.received), data, 0);
        Ok(())
    }

    /// All bytes that have been read.
    pub(super) fn into_bytes(self) -> Bytes {
        self.received
    }
}
