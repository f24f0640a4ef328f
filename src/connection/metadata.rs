//! What the metadata of calls takes: a client sends a header of the HPACK table as one byte, and each is
//! a header again in memory.

use std::{pin::pin, sync::Arc};

use tokio::sync::oneshot;

use crate::{
    account::{Charge, metadata_len},
    call::{Call, CallResult},
    error::ProxyError,
    proxy::Proxy,
};

/// The metadata of one call on the account, until it is sent on.
pub(super) struct Charged {
    charge: Charge,
    /// Closes when the metadata is gone.
    gone: oneshot::Receiver<()>,
}

/// Goes with the metadata that it is in.
#[derive(Clone)]
struct There(#[expect(dead_code, reason = "dropped with the metadata")] Arc<oneshot::Sender<()>>);

impl Charged {
    /// Charges the metadata of `call`, unless that is as small as usual.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn new(proxy: &Proxy, call: &mut Call) -> Result<Option<Self>, ProxyError> {
        let Some(len) = metadata_len(&call.parts.headers) else { return Ok(None) };
        let mut charge = proxy.account().open(&call.client);
        charge.add(len)?;
        let (there, gone) = oneshot::channel();
        call.parts.extensions.insert(There(Arc::new(there)));
        Ok(Some(Self { charge, gone }))
    }

    /// Handles the call, unless its place in memory is another client's before its metadata is sent on.
    pub(super) async fn during(self, handling: impl Future<Output = CallResult>) -> CallResult {
        let Self { mut charge, gone } = self;
        let mut handling = pin!(handling);
        tokio::select! {
            biased;
            result = &mut handling => return result,
            () = charge.evicted() => return Err(ProxyError::Memory.into()),
            // Nothing is ever sent: the other half is dropped.
            _ = gone => {}
        }
        drop(charge);
        handling.await
    }
}
