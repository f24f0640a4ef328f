//! The composition root: binds ports, builds every part, owns every task.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    acceptor::Acceptor,
    access,
    account::Account,
    address::{Address, HostPort},
    admin::{self, Admin, Control, Rights},
    config::{AdminAccess, Config, Count, LocalAddress, Process},
    connection::Context,
    connection_limit::ConnectionLimit,
    descriptors::Budget,
    first_message::Reader,
    kubernetes::Access,
    listener::{Admission, Handshakes, Hops, ListenError, Listener},
    metrics::Families,
    pool::{self, Pool, PoolError},
    proxy::Commons,
    scaler,
    shares::{Limits, Shares},
    shutdown::Signals,
    tls::{self, TlsError},
    token::{TokenError, TokenFile},
    upstream::client_connections,
};

/// How often a drain says what it waits for.
const DRAIN_REPORT: Duration = Duration::from_secs(10);

/// The most TLS handshakes of clients at once. A handshake takes some tens of KiB of memory and a millisecond of a
/// processor. Four hundred jobs of one pipeline fit.
const MAX_HANDSHAKES: usize = 1000;

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The proxy cannot listen on an address for clients.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A pool cannot start.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The proxy cannot listen on the address of the admin port.
    #[error("listen on admin port {address}")]
    Admin {
        /// The address.
        address: HostPort,
        /// Why.
        source: io::Error,
    },
    /// The name of the configured DNS server cannot be looked up.
    #[error("look up the DNS server {server}")]
    DnsServer {
        /// The server.
        server: HostPort,
        /// Why.
        source: io::Error,
    },
    /// The proxy cannot listen on the control address.
    #[error("listen on control address {address}")]
    Control {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The proxy cannot listen on the scaler's address.
    #[error("listen on scaler port {address}")]
    Scaler {
        /// The address.
        address: HostPort,
        /// Why.
        source: io::Error,
    },
    /// The scaler's certificates became invalid after the configuration was checked.
    #[error("read the scaler's certificates")]
    ScalerTls(#[source] TlsError),
    /// The admin port's certificates became invalid after the configuration was checked.
    #[error("read the admin port's certificates")]
    AdminTls(#[source] TlsError),
    /// The token file became invalid after the configuration was checked.
    #[error("read the admin tokens")]
    AdminTokens(#[source] TokenError),
    /// The file of the clients' tokens has broken since the configuration was read.
    #[error("read the clients' tokens")]
    ClientTokens(#[source] TokenError),
}

/// A running proxy.
#[derive(Debug)]
pub struct App {
    pools: Arc<[Pool]>,
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
        let mut listeners = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            for address in &pool.listen {
                listeners.push((index, Listener::bind(address).await?));
            }
        }
        let in_use = |source| StartError::Admin { address: process.admin_listen.clone(), source };
        let HostPort { host, port } = &process.admin_listen;
        let admin = TcpListener::bind((host.as_str(), *port)).await.map_err(in_use)?;
        let admin_listen = admin.local_addr().map_err(in_use)?;
        let control =
            bind_control(process.control_listen.as_ref().map(|LocalAddress(address)| address))
                .await?;
        let scaler = bind_scaler(&process).await?;
        let tokens = process.admin_token_file.as_deref().map(TokenFile::open).transpose();
        let tokens = tokens.map_err(StartError::AdminTokens)?;
        let client_tokens = process.client_token_file.as_deref().map(TokenFile::open).transpose();
        let client_tokens = client_tokens.map_err(StartError::ClientTokens)?;
        let identities = Arc::new(identities);
        let AdminAccess { admin_tls_dir, admin_client, admin_restrict_reading } = admin_access;
        let admin_tls = admin_tls_dir.as_deref().map(tls::Server::for_admin_port).transpose();
        let admin_tls = admin_tls.map_err(StartError::AdminTls)?;
        let admin_tls = admin_tls.map(|server| admin::Tls::new(server, &identities));
        let rights =
            Rights { tokens, clients: admin_client, restrict_reading: admin_restrict_reading };

        let dns_server = match process.dns_server.clone() {
            Some(server) => Some(resolve(server).await?),
            None => None,
        };

        let families = Families::new();
        info!(memory_budget = process.memory_budget(), "memory budget set");
        let account = Account::new(process.memory_budget(), families.held_bytes.clone());
        let downstream = TaskTracker::new();
        let background = TaskTracker::new();
        let [leaving, drain, stop] = std::array::from_fn(|_| CancellationToken::new());
        let shared = pool::Shared {
            dns_server,
            pods: process.pods(),
            kubernetes: Access::default(),
            commons: Commons {
                connections: client_connections(Budget::of_process().upstream),
                reader: Reader::new(account),
                windows: large_windows(process.memory_budget()),
                drain: drain.clone(),
                identities: Arc::clone(&identities),
                tokens: client_tokens.map(Arc::new),
                access: Arc::new(access),
                quota: access::Quota::default(),
            },
            families: &families,
            tasks: &background,
            stop: &stop,
        };
        let mut started = Vec::new();
        for pool in pools {
            started.push(Pool::start(pool, &shared).await?);
        }
        let pools: Arc<[Pool]> = started.into();
        if let [pool, ..] = &*pools {
            // The rules belong to no pool. The metrics about their CA certificates have the name of the first one.
            for authority in identities.authorities() {
                let metrics = Arc::clone(&pool.proxy.metrics);
                background.spawn(Arc::clone(authority).follow(metrics, stop.clone()));
            }
        }

        let state = Admin::new(&pools, &families, &leaving, rights);
        admin::serve((admin, admin_listen), admin_tls, control, state, &background, &stop);
        if let Some(scaler) = scaler {
            scaler::serve(scaler, &pools, &leaving, &background, &stop);
        }
        let limit = ConnectionLimit::new(max_connections(process.max_connections.map(Count::get)));
        let under_way = Handshakes::limit(MAX_HANDSHAKES);
        let listen = listeners.iter().map(|(_pool, listener)| listener.address().clone()).collect();
        for (pool, listener) in listeners {
            let pool = &pools[pool];
            warn_of_plain(listener.address(), pool);
            let handshakes = pool.tls.clone().map(|tls| Handshakes::new(tls, under_way.clone()));
            let hops = Hops::new(&pool.proxy_protocol);
            let admission = Admission { limit: limit.clone(), handshakes, hops };
            let context = Context {
                proxy: Arc::clone(&pool.proxy),
                tasks: downstream.clone(),
                drain: drain.clone(),
            };
            background.spawn(listener.run(context, admission));
        }
        Ok(Self {
            pools,
            families,
            downstream,
            background,
            leaving,
            drain,
            stop,
            listen,
            admin_listen,
            drain_delay: process.drain_delay.0,
            drain_timeout: process.drain_timeout.0,
        })
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

async fn resolve(server: HostPort) -> Result<SocketAddr, StartError> {
    server.resolve().await.map_err(|source| StartError::DnsServer { server, source })
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

/// Binds the scaler's port, if one is configured.
async fn bind_scaler(process: &Process) -> Result<Option<scaler::Port>, StartError> {
    let Some(address) = &process.scaler_listen else { return Ok(None) };
    let failed = |source| StartError::Scaler { address: address.clone(), source };
    let listener = TcpListener::bind((address.host.as_str(), address.port)).await;
    let listener = listener.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let tls = process.scaler_tls_dir.as_deref().map(tls::Server::for_scaler).transpose();
    let tls = tls.map_err(StartError::ScalerTls)?.map(Arc::new);
    info!(address = %bound, port_name = "scaler", "listening");
    Ok(Some(scaler::Port { acceptor: Acceptor::from_tcp(listener, bound), tls }))
}

/// Binds the control listener, if one is configured.
async fn bind_control(address: Option<&Address>) -> Result<Option<Control>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| StartError::Control { address: address.clone(), source };
    Control::bind(address).await.map(Some).map_err(failed)
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
