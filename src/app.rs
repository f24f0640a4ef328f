//! The composition root: binds ports, builds every part, owns every task.

mod error;
mod ports;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

pub use self::error::StartError;
use self::ports::Ports;
use crate::{
    acceptor::Acceptor,
    access,
    account::Account,
    address::{Address, HostPort},
    admin::{self, Admin, Control, Rights},
    config::{AdminAccess, Config, Count, Process},
    connection::Context,
    connection_limit::ConnectionLimit,
    descriptors::Budget,
    first_message::Reader,
    identity,
    kubernetes::Access,
    listener::{Admission, Handshakes, Hops, Listener},
    metrics::Families,
    pool::{self, Pool},
    proxy::Commons,
    scaler,
    shares::{Limits, Shares},
    shutdown::Signals,
    tls,
    token::TokenFile,
    traces::Traces,
    upstream::Connections,
};

/// How often a drain says what it waits for.
const DRAIN_REPORT: Duration = Duration::from_secs(10);

/// The most TLS handshakes of clients at once. A handshake takes some tens of KiB of memory and a millisecond of a
/// processor. Four hundred jobs of one pipeline fit.
const MAX_HANDSHAKES: usize = 1000;

/// A running proxy.
#[derive(Debug)]
pub struct App {
    pools: Arc<[Pool]>,
    /// Exports spans of builds; `None` if nobody asked for them.
    traces: Option<Traces>,
    families: Arc<Families>,
    /// The connections of clients and their streams. A drain waits for them.
    downstream: TaskTracker,
    /// Listeners, connections to daemons, probes and the admin port. They end after the drain.
    background: TaskTracker,
    /// Cancelled once the proxy has been told to end: `/readyz` answers 503 from then on.
    leaving: CancellationToken,
    /// Cancelled once the proxy accepts no more connections.
    drain: CancellationToken,
    /// Cancelled after the drain: the background tasks end.
    stop: CancellationToken,
    listen: Vec<Address>,
    admin_listen: SocketAddr,
    drain_delay: Duration,
    drain_timeout: Duration,
}

impl App {
    /// Binds all ports and starts all tasks.
    ///
    /// # Errors
    /// A port cannot be bound, or a file cannot be read. No task runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let Config { pools, identities, access, admin_access, process } = config;
        let ports = Ports::bind(&pools, &process).await?;
        let identities = Arc::new(identities);
        let (rights, admin_tls) = admin_rights(admin_access, &process, &identities)?;
        let families = Families::new();
        let [leaving, drain, stop] = std::array::from_fn(|_| CancellationToken::new());
        let (downstream, background) = (TaskTracker::new(), TaskTracker::new());
        let traces = process.traces();
        let traces = traces.map(|config| Traces::start(&config, &families, &background));
        let traces = traces.transpose()?;
        let shared = pool::Shared {
            dns_server: resolve(process.dns_server.clone()).await?,
            pods: process.pods(),
            kubernetes: Access::default(),
            commons: Commons {
                traces: traces.clone(),
                ..commons(&process, &families, &identities, access, &drain)?
            },
            families: &families,
            tasks: &background,
            stop: &stop,
        };
        let mut started = Vec::new();
        for pool in pools {
            started.push(Pool::start(pool, &shared).await?);
        }
        let app = Self {
            pools: started.into(),
            traces,
            families,
            downstream,
            background,
            leaving,
            drain,
            stop,
            listen: ports.listen(),
            admin_listen: ports.admin.1,
            drain_delay: process.drain_delay.0,
            drain_timeout: process.drain_timeout.0,
        };
        app.follow_authorities(&identities);
        app.serve_operators(ports.admin, ports.control, ports.scaler, rights, admin_tls);
        app.serve_clients(ports.clients, process.max_connections.map(Count::get));
        Ok(app)
    }

    /// Follows the CA files that rules of identities name.
    fn follow_authorities(&self, identities: &identity::Rules) {
        // The rules belong to no pool. The metrics about their CA certificates have the name of the first one.
        let Some(pool) = self.pools.first() else { return };
        for authority in identities.authorities() {
            let metrics = Arc::clone(&pool.proxy.metrics);
            self.background.spawn(Arc::clone(authority).follow(metrics, self.stop.clone()));
        }
    }

    /// Serves the admin port, the control listener and the scaler.
    fn serve_operators(
        &self,
        admin: (Acceptor, SocketAddr),
        control: Option<Control>,
        scaler: Option<scaler::Port>,
        rights: Rights,
        tls: Option<admin::Tls>,
    ) {
        let state = Admin::new(&self.pools, &self.families, &self.leaving, rights);
        admin::serve(admin, tls, control, state, &self.background, &self.stop);
        if let Some(scaler) = scaler {
            scaler::serve(scaler, &self.pools, &self.leaving, &self.background, &self.stop);
        }
    }

    /// Serves the ports for clients, of which at most `asked` may be connected.
    fn serve_clients(&self, listeners: Vec<(usize, Listener)>, asked: Option<usize>) {
        let limit = ConnectionLimit::new(max_connections(asked));
        let under_way = Handshakes::limit(MAX_HANDSHAKES);
        for (pool, listener) in listeners {
            let pool = &self.pools[pool];
            warn_of_plain(listener.address(), pool);
            let handshakes = pool.tls.clone().map(|tls| Handshakes::new(tls, under_way.clone()));
            let hops = Hops::new(&pool.proxy_protocol);
            let admission = Admission { limit: limit.clone(), handshakes, hops };
            let context = Context {
                proxy: Arc::clone(&pool.proxy),
                tasks: self.downstream.clone(),
                drain: self.drain.clone(),
            };
            self.background.spawn(listener.run(context, admission));
        }
    }

    /// The addresses for clients. A configured port 0 is replaced by the real port.
    pub fn listen(&self) -> &[Address] {
        &self.listen
    }

    /// The address of the admin port.
    pub fn admin_listen(&self) -> SocketAddr {
        self.admin_listen
    }

    /// Serves until a signal comes, then drains. Returns when the last build has ended, when the drain timeout is over, or
    /// when a second signal comes.
    pub async fn run(self, mut signals: Signals) {
        let signal = signals.next().await;
        let builds = self.builds();
        info!(signal, builds, delay = ?self.drain_delay, timeout = ?self.drain_timeout, "draining");
        self.leaving.cancel();
        self.families.drain_in_progress.set(1);
        tokio::select! {
            () = self.wait_for_builds() => {}
            signal = signals.next() => warn!(signal, "second signal, ending builds"),
        }
        self.stop.cancel();
        self.background.close();
        for pool in self.pools.iter() {
            pool.close().await;
        }
        if let Some(traces) = &self.traces {
            traces.close().await;
        }
    }

    /// Accepts connections until the drain delay is over, then waits for the builds until the drain timeout is over.
    async fn wait_for_builds(&self) {
        tokio::time::sleep(self.drain_delay).await;
        self.drain.cancel();
        self.downstream.close();
        tokio::select! {
            () = self.downstream.wait() => info!("drained"),
            () = tokio::time::sleep(self.drain_timeout) => warn!("drain timeout, ending builds"),
            () = self.report_drain() => {}
        }
    }

    /// Logs at regular times how many builds the drain waits for.
    async fn report_drain(&self) {
        loop {
            let remaining = self.builds();
            let gauge = i64::try_from(remaining).unwrap_or(i64::MAX);
            self.families.drain_builds_remaining.set(gauge);
            let open = |pool: &Pool| pool.proxy.metrics.connections_active.get();
            let connections: i64 = self.pools.iter().map(open).sum();
            info!(remaining, connections, "draining");
            tokio::time::sleep(DRAIN_REPORT).await;
        }
    }

    fn builds(&self) -> usize {
        self.pools.iter().map(Pool::builds).sum()
    }
}

/// The memory for large receive windows of clients: as much as the budget for calls that wait.
fn large_windows(budget: u64) -> Shares {
    Shares::new(Limits { total: budget, address: budget, connection: budget })
}

/// What operators may do, and how the admin port speaks TLS.
fn admin_rights(
    access: AdminAccess,
    process: &Process,
    identities: &Arc<identity::Rules>,
) -> Result<(Rights, Option<admin::Tls>), StartError> {
    let AdminAccess { admin_tls_dir, admin_client, admin_restrict_reading } = access;
    let tokens = process.admin_token_file.as_deref().map(TokenFile::open).transpose();
    let tls = admin_tls_dir.as_deref().map(tls::Server::for_admin_port).transpose();
    let rights = Rights {
        tokens: tokens.map_err(StartError::AdminTokens)?,
        clients: admin_client,
        restrict_reading: admin_restrict_reading,
    };
    let tls = tls.map_err(StartError::AdminTls)?;
    Ok((rights, tls.map(|server| admin::Tls::new(server, identities))))
}

/// What all pools share.
fn commons(
    process: &Process,
    families: &Families,
    identities: &Arc<identity::Rules>,
    access: access::Rules,
    drain: &CancellationToken,
) -> Result<Commons, StartError> {
    let budget = process.memory_budget();
    info!(memory_budget = budget, "memory budget set");
    let tokens = process.client_token_file.as_deref().map(TokenFile::open).transpose();
    Ok(Commons {
        connections: Connections::of(Budget::of_process()),
        reader: Reader::new(Account::new(budget, families.held_bytes.clone())),
        windows: large_windows(budget),
        drain: drain.clone(),
        identities: Arc::clone(identities),
        tokens: tokens.map_err(StartError::ClientTokens)?.map(Arc::new),
        access: Arc::new(access),
        quota: access::Quota::default(),
        recent_builds: process.recent_builds.get(),
        traces: None,
    })
}

/// The address of the DNS server, if one is configured.
async fn resolve(server: Option<HostPort>) -> Result<Option<SocketAddr>, StartError> {
    let Some(server) = server else { return Ok(None) };
    let resolved = server.resolve().await;
    resolved.map(Some).map_err(|source| StartError::DnsServer { server, source })
}

/// The limit of client connections: `asked`, but at most as many as there are file descriptors for.
fn max_connections(asked: Option<usize>) -> usize {
    let possible = usize::try_from(Budget::of_process().clients).unwrap_or(usize::MAX);
    let connections = asked.unwrap_or(possible).min(possible);
    if asked.is_some_and(|asked| asked > possible) {
        warn!(asked, connections, "max-connections lowered, too few file descriptors");
    }
    info!(connections, "connection limit set");
    connections
}

/// Warns that everybody who reaches `address` may build, unless only this machine can reach it.
fn warn_of_plain(address: &Address, pool: &Pool) {
    let Address::Tcp { host, .. } = address else { return };
    let is_loopback = |ip: IpAddr| ip.to_canonical().is_loopback();
    let own = host == "localhost" || host.parse().is_ok_and(is_loopback);
    if pool.tls.is_none() && !own {
        let pool = pool.name();
        warn!(pool, %address, "clients need no certificate: everybody who reaches this address may build");
    }
}
