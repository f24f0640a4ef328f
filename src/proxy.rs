//! The state that the handlers of all streams share, and the steps that they have in common: read the first
//! message, find the link of a build, relay, or answer with the proxy's own error.
//!
//! The rooms above, `builds` and `fanout`, decide which stream is handled in which way.

mod links;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, request::Parts};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::{self, Reach},
    account::Account,
    activity::Activity,
    affinity::{Rules, shared_keys::SharedKeys},
    call::CallResult,
    capabilities::Capabilities,
    carriers::Carriers,
    client::Client,
    directory::Directory,
    error::ProxyError,
    first_message::{FirstMessage, Reader, Unread},
    fleet::Fleet,
    identity,
    ids::Id,
    metrics::Metrics,
    ownership::Ownership,
    parking::Parking,
    placement::{self, Placement},
    received::Received,
    refusals::Refusals,
    relay::{self, Body, ByteCounts, End, OnEnd, ResetError},
    running::Running,
    shares::Shares,
    token::{ClientTokens, TokenFile},
    traces::Traces,
    upstream::{Connections, Link, SendError, SharedLinks},
};

/// The shared state of one pool. Clones share it.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// The bindings of sessions and builds to backends.
    pub directory: Directory,
    /// The live backends of the pool.
    pub fleet: Arc<Fleet>,
    /// The links for calls that belong to no build.
    pub shared: Arc<SharedLinks>,
    /// The answers of daemons about what they can do.
    pub capabilities: Arc<Capabilities>,
    /// The metrics of the pool.
    pub metrics: Arc<Metrics>,
    /// Decides where builds go.
    pub placement: Arc<Placement>,
    /// Holds calls until their build is bound.
    pub parking: Arc<Parking>,
    /// The builds that have been placed and have not ended, and those that ended last.
    pub running: Running,
    /// When clients of the pool called last.
    pub activity: Arc<Activity>,
    /// The connections that carry the Solves of builds.
    pub carriers: Carriers,
    /// The owners of sessions and builds.
    pub ownership: Ownership,
    /// The rules that make the affinity key of a build.
    pub rules: Arc<Rules>,
    /// The rules that find the name of a client in its certificate.
    pub identities: Arc<identity::Rules>,
    /// The tokens that give clients a name, if there are any.
    pub tokens: Option<Arc<TokenFile<ClientTokens>>>,
    /// The rules that say what a client may do.
    pub access: Arc<access::Rules>,
    quota: access::Quota,
    /// The shared keys that sessions declare.
    pub shared_keys: SharedKeys,
    /// The memory that the large receive windows of clients may take together, in bytes.
    pub windows: Shares,
    /// Exports spans of builds; `None` if nobody asked for them.
    pub traces: Option<Traces>,
    tasks: TaskTracker,
    reader: Reader,
    /// Counts and logs the calls that the proxy refuses.
    pub refusals: Arc<Refusals>,
}

/// What the clients of all pools share.
#[derive(Debug, Clone)]
pub struct Commons {
    /// The limit on connections to daemons.
    pub connections: Connections,
    /// Reads first messages, and charges them to one account.
    pub reader: Reader,
    /// The memory that large receive windows may take, in bytes.
    pub windows: Shares,
    /// Cancelled when the proxy drains. Builds that wait are refused then.
    pub drain: CancellationToken,
    /// The rules that find the name of a client in its certificate.
    pub identities: Arc<identity::Rules>,
    /// The tokens that give clients a name, if there are any.
    pub tokens: Option<Arc<TokenFile<ClientTokens>>>,
    /// The rules that say what a client may do.
    pub access: Arc<access::Rules>,
    /// Counts the builds of clients for which a rule limits their number.
    pub quota: access::Quota,
    /// How many builds that have ended each pool remembers.
    pub recent_builds: usize,
    /// Exports spans of builds; `None` if nobody asked for them.
    pub traces: Option<Traces>,
}

impl Proxy {
    /// A proxy that has seen no stream yet. Its tasks run on `tasks`.
    pub fn new(
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        placing: placement::Config,
        rules: Arc<Rules>,
        commons: Commons,
        tasks: TaskTracker,
    ) -> Self {
        let Commons {
            connections,
            reader,
            windows,
            drain,
            identities,
            tokens,
            access,
            quota,
            recent_builds,
            traces,
        } = commons;
        let directory = Directory::default();
        let shared = Arc::new(SharedLinks::new(connections, tasks.clone()));
        let capabilities = Arc::<Capabilities>::default();
        let placement = Arc::new(Placement::new(
            directory.clone(),
            Arc::clone(&fleet),
            Arc::clone(&shared),
            Arc::clone(&capabilities),
            placing,
            Arc::clone(&metrics),
            drain,
        ));
        Self {
            parking: Arc::new(Parking::new(directory.clone(), Arc::clone(&metrics))),
            directory,
            fleet,
            shared,
            capabilities,
            refusals: Arc::new(Refusals::new(Arc::clone(&metrics))),
            metrics,
            placement,
            running: Running::new(recent_builds),
            activity: Arc::default(),
            carriers: Carriers::default(),
            ownership: Ownership::default(),
            rules,
            identities,
            tokens,
            access,
            quota,
            shared_keys: SharedKeys::default(),
            windows,
            traces,
            tasks,
            reader,
        }
    }

    /// Runs `task` independently of the stream that needs it.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// What `client` may do.
    pub fn grant(&self, client: &Client) -> &access::Grant {
        self.access.grant(client.identity.as_deref())
    }

    /// The id of the record that `client` asks for by the ref `build`. `None` if the client may not see it.
    pub fn visible(&self, build: &Id, client: &Client) -> Option<Id> {
        let owner = self.ownership.of_build(build);
        match self.grant(client).history() {
            Reach::None => None,
            Reach::Own => (owner == client.identity).then(|| build.clone()),
            Reach::All => Some(build.of(owner.as_ref())),
        }
    }

    /// Whether records may exist that `client` may not see.
    pub fn leaves_out(&self, client: &Client) -> bool {
        let named = client.identity.is_some() || self.ownership.is_used();
        named && self.grant(client).history() != Reach::All
    }

    /// Counts a build of `client`. `None` if no rule limits how many builds the client may run.
    ///
    /// # Errors
    /// The client runs as many builds as the rule allows.
    pub fn count_build(&self, client: &Client) -> Result<Option<access::Running>, ProxyError> {
        let Some(most) = self.grant(client).max_builds() else { return Ok(None) };
        let counted = self.quota.start(client.identity.as_ref(), most);
        let client = access::name(client.identity.as_deref());
        counted.map(Some).ok_or(ProxyError::TooManyBuilds { client, most })
    }

    /// Reads the first message of `body`, which `client` sends in the call with the metadata `parts`.
    ///
    /// # Errors
    /// The message does not arrive in time, is too large or malformed, or there is no memory for it.
    pub async fn read_message(
        &self,
        parts: &Parts,
        client: &Client,
        body: Received,
    ) -> Result<(FirstMessage, Received), Unread> {
        self.reader.first_message(parts, client, body).await
    }

    /// The account of the memory for data that waits to be sent on.
    pub fn account(&self) -> &Account {
        self.reader.account()
    }

    /// Relays a call of `client` that any daemon can answer, or that only a daemon can refuse. `prefix` was read
    /// from its body.
    ///
    /// # Errors
    /// The proxy's own error, or the reset of the daemon.
    pub async fn relay_to_any(
        &self,
        client: &Client,
        parts: Parts,
        prefix: Bytes,
        rest: Received,
    ) -> CallResult {
        let link = self.placement.any(client).await?;
        self.relay_call(&link, parts, prefix, rest).await
    }

    /// Relays a call that nobody counts. `prefix` was read from its body.
    ///
    /// # Errors
    /// The proxy's own error, or the reset of the daemon.
    pub async fn relay_call(
        &self,
        link: &Link,
        parts: Parts,
        prefix: Bytes,
        rest: Received,
    ) -> CallResult {
        let request = Request::from_parts(parts, rest);
        self.relay(link, prefix, request, Arc::default(), OnEnd::new(drop)).await
    }

    /// Relays `request` over `link`. `prefix` was read from its body.
    ///
    /// # Errors
    /// The proxy's own error, or the reset of the daemon.
    pub fn relay(
        &self,
        link: &Link,
        prefix: Bytes,
        request: Request<Received>,
        byte_counts: Arc<ByteCounts>,
        mut on_end: OnEnd,
    ) -> impl Future<Output = CallResult> + Send {
        let backend = link.backend();
        // Boxed before the first await. A Solve waits for hours, and each future around it would otherwise keep
        // memory for a request that has been sent.
        let request = Box::new(relay::request(request, |rest| {
            Body::upload(prefix, rest, Arc::clone(backend), Arc::clone(&byte_counts))
        }));
        async move {
            match link.send(request).await {
                Ok(response) => {
                    Ok(relay::response(response, Arc::clone(backend), byte_counts, on_end))
                }
                Err(SendError::Proxy(error)) => {
                    on_end.fire(End::of(&error));
                    Err(error.into())
                }
                Err(SendError::Cancelled) => {
                    on_end.fire(End::ClientGone);
                    Err(ResetError::cancel().into())
                }
                Err(SendError::Reset(error)) => {
                    on_end.fire(End::DaemonReset);
                    Err(ResetError::like(&error).into())
                }
            }
        }
    }
}
