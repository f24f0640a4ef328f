//! The memory of call metadata. A client can send a header from the HPACK table as one byte, and each takes the
//! memory of a full header.

use std::{pin::pin, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    account::{Charge, metadata_len},
    call::{Call, CallResult},
    error::ProxyError,
    proxy::Proxy,
};

/// The charge for the metadata of one call, until it is sent on.
pub(super) struct Charged {
    charge: Charge,
    /// Closed when the metadata has been dropped.
    gone: oneshot::Receiver<()>,
}

/// Dropped together with the metadata that contains it.
#[derive(Clone)]
struct There(#[expect(dead_code, reason = "dropped with the metadata")] Arc<oneshot::Sender<()>>);

impl Charged {
    /// Charges the metadata of `call`. `None` if it is as small as usual.
    ///
    /// # Errors
    /// The account of memory is full.
    pub(super) fn new(proxy: &Proxy, call: &mut Call) -> Result<Option<Self>, ProxyError> {
        let Some(len) = metadata_len(&call.parts.headers) else { return Ok(None) };
        let mut charge = proxy.account().open(&call.client);
        charge.add(len)?;
        let (there, gone) = oneshot::channel();
        call.parts.extensions.insert(There(Arc::new(there)));
        Ok(Some(Self { charge, gone }))
    }

    /// Handles the call. Gives up if another client gets the memory of the metadata before it is sent on.
    pub(super) async fn during(self, handling: impl Future<Output = CallResult>) -> CallResult {
        let Self { mut charge, gone } = self;
        let mut handling = pin!(handling);
        tokio::select! {
            biased;
            result = &mut handling => return result,
            () = charge.evicted() => return Err(ProxyError::Memory.into()),
            // Nothing is sent on this channel: the other half is dropped.
            _ = gone => {}
        }
        drop(charge);
        handling.await
    }
}
