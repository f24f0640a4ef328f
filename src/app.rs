//! The composition root: binds ports, builds every part, owns every task.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_resolver::net::NetError;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    address::Address,
    admin,
    config::Config,
    connection::Context,
    discovery::{
        Register, Target, dns,
        kubernetes::{self, ClientError},
    },
    fleet::Fleet,
    health,
    listener::{ListenError, Listener},
    metrics::Metrics,
    proxy::Proxy,
    shutdown::Signals,
};

/// How often a drain says what it waits for.
const DRAIN_REPORT: Duration = Duration::from_secs(10);

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A client address cannot be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Daemons are to be found by a Kubernetes API that there is no way to.
    #[error(transparent)]
    Kubernetes(#[from] ClientError),
    /// Daemons are to be found by DNS, and the system names no server.
    #[error("read the DNS servers of this machine")]
    Dns(#[from] NetError),
    /// The admin address cannot be listened on.
    #[error("listen on admin port {address}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A proxy that listens.
#[derive(Debug)]
pub struct App {
    proxy: Proxy,
    /// Downstream connections and their streams: what a drain waits for.
    downstream: TaskTracker,
    /// Listeners, upstream connections, prober, admin port: ended after the drain.
    background: TaskTracker,
    drain: CancellationToken,
    stop: CancellationToken,
    listen: Vec<Address>,
    admin_listen: SocketAddr,
    drain_timeout: Duration,
}

impl App {
    /// Binds all ports and starts all tasks.
    ///
    /// # Errors
    /// A port cannot be bound; nothing runs then.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        for address in &config.listen {
            listeners.push(Listener::bind(address).await?);
        }
        let in_use = |source| StartError::Admin { address: config.admin_listen, source };
        let admin = TcpListener::bind(config.admin_listen).await.map_err(in_use)?;
        let admin_listen = admin.local_addr().map_err(in_use)?;

        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)));
        let register = Register::new(Arc::clone(&fleet), Arc::clone(&metrics));
        if !config.backends.is_empty() {
            register.source(&"backend").found(config.backends, None);
        }
        let downstream = TaskTracker::new();
        let background = TaskTracker::new();
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        for target in config.discover {
            let feed = register.source(&target);
            let stop = stop.clone();
            match target {
                Target::Kubernetes(service) => {
                    let client = kubernetes::client().await?;
                    background.spawn(kubernetes::run(client, service, feed, stop));
                }
                Target::Dns(name) => {
                    let resolver = dns::resolver(config.dns_server)?;
                    background.spawn(dns::run(resolver, name, feed, stop));
                }
            }
        }
        let proxy = Proxy::new(
            Arc::clone(&fleet),
            metrics,
            config.policy,
            Arc::new(config.affinity),
            background.clone(),
        );

        background.spawn(health::run(
            fleet,
            Arc::clone(&proxy.shared),
            background.clone(),
            stop.clone(),
        ));
        background.spawn(admin::serve(admin, proxy.clone(), register, drain.clone(), stop.clone()));
        let limit = Arc::new(Semaphore::new(config.max_connections));
        let listen = listeners.iter().map(|listener| listener.address().clone()).collect();
        for listener in listeners {
            let context =
                Context { proxy: proxy.clone(), tasks: downstream.clone(), drain: drain.clone() };
            background.spawn(listener.run(context, Arc::clone(&limit)));
        }
        Ok(Self {
            proxy,
            downstream,
            background,
            drain,
            stop,
            listen,
            admin_listen,
            drain_timeout: config.drain_timeout,
        })
    }

    /// Where clients connect; a port 0 has become the real one.
    pub fn listen(&self) -> &[Address] {
        &self.listen
    }

    /// Where the admin port is.
    pub fn admin_listen(&self) -> SocketAddr {
        self.admin_listen
    }

    /// Serves until a signal, drains, and returns when the last build has ended, the drain timeout
    /// is over or a second signal came.
    pub async fn run(self, mut signals: Signals) {
        let signal = signals.next().await;
        let builds = self.proxy.directory.builds().len();
        info!(signal, builds, timeout = ?self.drain_timeout, "draining");
        self.drain.cancel();
        self.downstream.close();
        self.proxy.metrics.families().drain_in_progress.set(1);
        tokio::select! {
            () = self.downstream.wait() => info!("drained"),
            () = tokio::time::sleep(self.drain_timeout) => warn!("drain timeout, cutting builds"),
            signal = signals.next() => warn!(signal, "second signal, cutting builds"),
            () = self.report_drain() => {}
        }
        self.stop.cancel();
        self.background.close();
    }

    /// Says again and again what the drain waits for.
    async fn report_drain(&self) {
        loop {
            let builds = self.proxy.directory.builds();
            let remaining = i64::try_from(builds.len()).unwrap_or(i64::MAX);
            self.proxy.metrics.families().drain_builds_remaining.set(remaining);
            info!(remaining, connections = self.proxy.metrics.connections_active.get(), "draining");
            tokio::time::sleep(DRAIN_REPORT).await;
        }
    }
}
