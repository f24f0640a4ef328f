//! The calls that wait for their build. Clients share a limit, so that no client can use it up.

use std::{pin::pin, sync::Arc, time::Duration};

use crate::{
    client::Client,
    directory::{Caller, Directory, Lookup},
    error::ProxyError,
    ids::{BindingKey, TraceId},
    metrics::Metrics,
    shares::{LimitReached, Limits, Shares},
};

/// The most calls that wait at once, with a few KB each. A build parks three, a bake of forty targets 161.
///
/// One address may take the whole limit, because many clients behind a hop or a NAT have one address. Another address
/// takes what it needs from the heaviest client. One connection may park half of its streams, because the others are
/// for calls that run.
const LIMITS: Limits = Limits { total: 100_000, address: 100_000, connection: 5_000 };

/// The limit on calls that wait for the bindings of one directory.
#[derive(Debug)]
pub struct Parking {
    directory: Directory,
    limit: Shares,
    metrics: Arc<Metrics>,
}

impl Parking {
    /// No call waits.
    pub fn new(directory: Directory, metrics: Arc<Metrics>) -> Self {
        Self::with(LIMITS, directory, metrics)
    }

    fn with(limits: Limits, directory: Directory, metrics: Arc<Metrics>) -> Self {
        Self { directory, limit: Shares::new(limits), metrics }
    }

    /// Waits until something is known of `key`; nothing is if its Solve has not come within `unseen`.
    ///
    /// # Errors
    /// The limit is reached, and no other client has more waiting calls than `client`.
    pub async fn wait(
        &self,
        client: &Client,
        trace: Option<TraceId>,
        key: &BindingKey,
        unseen: Duration,
    ) -> Result<Lookup, ProxyError> {
        let caller = Caller { connection: client.connection, trace };
        self.during(client, pin!(self.directory.bound(key, caller, unseen))).await
    }

    /// Waits for `outcome` as one of the calls that may.
    ///
    /// # Errors
    /// The limit is reached, and no other client has more waiting calls than `client`.
    pub async fn during<T>(
        &self,
        client: &Client,
        outcome: impl Future<Output = T> + Unpin,
    ) -> Result<T, ProxyError> {
        let mut share = self.limit.take(client, 1).map_err(ProxyError::Parked)?;
        self.metrics.parked_streams.inc();
        let _counted = Counted(&self.metrics);
        tokio::select! {
            // A call that is bound in the moment of its eviction goes on.
            biased;
            outcome = outcome => Ok(outcome),
            () = share.evicted() => Err(ProxyError::Parked(LimitReached::Total)),
        }
    }
}

struct Counted<'a>(&'a Metrics);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.parked_streams.dec();
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::ids::Id;

    fn client(address: u8, connection: u64) -> Client {
        let address = Some(IpAddr::from([127, 0, 0, address]));
        Client::new(connection, address)
    }

    fn key(text: &str) -> BindingKey {
        BindingKey::Build(Id::new(text.as_bytes(), None).expect("valid"))
    }

    /// Lets all tasks run until they wait: only then does the paused clock go on.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_bake_finds_room_beside_a_client_that_has_taken_all() {
        let metrics = Arc::new(Metrics::default());
        let limits = Limits { total: 1000, address: 1000, connection: 500 };
        let parking = Arc::new(Parking::with(limits, Directory::default(), Arc::clone(&metrics)));
        let park = |client: Client, key: BindingKey| {
            let parking = Arc::clone(&parking);
            tokio::spawn(
                async move { parking.wait(&client, None, &key, Duration::from_secs(14)).await },
            )
        };
        // Two connections of the attacker's, and more than there is.
        let attack: Vec<_> =
            (0..1200).map(|n| park(client(1, n % 2), key(&format!("nobody{n}")))).collect();
        settle().await;
        assert_eq!(metrics.parked_streams.get(), 1000);
        // One bake from elsewhere, and one from the attacker's own address.
        let bakes: Vec<_> = [client(2, 7), client(1, 8)]
            .into_iter()
            .flat_map(|client| (0..161).map(move |n| (client.clone(), key(&format!("bake{n}")))))
            .map(|(client, key)| park(client, key))
            .collect();
        settle().await;
        assert_eq!(metrics.parked_streams.get(), 1000);
        let refused = |call: &tokio::task::JoinHandle<_>| call.is_finished();
        assert_eq!(attack.iter().filter(|call| refused(call)).count(), 200 + 2 * 161);
        assert!(!bakes.iter().any(refused));
        for call in attack.into_iter().filter(refused) {
            let outcome = call.await.expect("no panic");
            assert!(matches!(outcome, Err(ProxyError::Parked(_))), "{outcome:?}");
        }
    }
}
