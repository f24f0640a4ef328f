//! A call that waits for its build, and what its client sends meanwhile.

use std::{mem, pin::pin};

use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::{
    account::Account,
    client::Client,
    error::ProxyError,
    first_message::{UNCHARGED_LEN, joined},
    received::Received,
    wire::{MAX_MESSAGE_LEN, PREFIX_LEN},
};

/// What one call may send that waits: one message. More stays with the client.
const MAX_PARKED_LEN: usize = PREFIX_LEN + MAX_MESSAGE_LEN;

/// Waits for `outcome`, and takes what `body` brings meanwhile: what has come is on the account, while
/// what the HTTP/2 library keeps of an unread stream is on none.
///
/// # Errors
/// Those of `outcome`; or there is no room for what came.
pub(super) async fn parked<T>(
    account: &Account,
    client: &Client,
    body: &mut Received,
    outcome: impl Future<Output = Result<T, ProxyError>>,
) -> Result<(T, Bytes), ProxyError> {
    let mut charge = account.open(client);
    let mut received = Bytes::new();
    let mut open = true;
    let mut outcome = pin!(outcome);
    loop {
        tokio::select! {
            biased;
            outcome = &mut outcome => return Ok((outcome?, received)),
            () = charge.evicted() => return Err(ProxyError::Memory),
            frame = body.frame(), if open => {
                // At an end, and at a reset, nothing more comes; the body still tells which it was.
                let Some(Ok(Ok(data))) = frame.map(|frame| frame.map(http_body::Frame::into_data))
                else {
                    open = false;
                    continue;
                };
                let new = if charge.is_used() { data.len() } else { received.len() + data.len() };
                if charge.is_used() || new > UNCHARGED_LEN {
                    charge.add(new)?;
                }
                received = joined(mem::take(&mut received), data, 0);
                open = received.len() < MAX_PARKED_LEN;
            }
        }
    }
}
