//! The ports of the proxy: all are bound before any task starts.

use std::{net::SocketAddr, sync::Arc};

use tracing::info;

use super::StartError;
use crate::{
    acceptor::Acceptor,
    address::{Address, HostPort},
    admin::Control,
    config::{LocalAddress, Pool, Process},
    listener::Listener,
    scaler, tls,
};

/// The bound ports. Nobody is served on them yet.
pub(super) struct Ports {
    /// Those for clients, each with the index of its pool.
    pub(super) clients: Vec<(usize, Listener)>,
    /// The admin port, and its address.
    pub(super) admin: (Acceptor, SocketAddr),
    pub(super) control: Option<Control>,
    pub(super) scaler: Option<scaler::Port>,
}

impl Ports {
    /// Binds the ports of the `pools` and those of the process.
    ///
    /// # Errors
    /// A port cannot be bound, or the certificates of the scaler cannot be read.
    pub(super) async fn bind(pools: &[Pool], process: &Process) -> Result<Self, StartError> {
        let mut clients = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            for address in &pool.listen {
                clients.push((index, Listener::bind(address).await?));
            }
        }
        let control = process.control_listen.as_ref().map(|LocalAddress(address)| address);
        Ok(Self {
            clients,
            admin: bind_admin(&process.admin_listen).await?,
            control: bind_control(control).await?,
            scaler: bind_scaler(process).await?,
        })
    }

    /// The addresses for clients.
    pub(super) fn listen(&self) -> Vec<Address> {
        self.clients.iter().map(|(_pool, listener)| listener.address().clone()).collect()
    }
}

async fn bind_admin(address: &HostPort) -> Result<(Acceptor, SocketAddr), StartError> {
    let failed = |source| StartError::Admin { address: address.clone(), source };
    Acceptor::bind_port(address).await.map_err(failed)
}

/// Binds the scaler's port, if one is configured.
async fn bind_scaler(process: &Process) -> Result<Option<scaler::Port>, StartError> {
    let Some(address) = &process.scaler_listen else { return Ok(None) };
    let failed = |source| StartError::Scaler { address: address.clone(), source };
    let (acceptor, bound) = Acceptor::bind_port(address).await.map_err(failed)?;
    let tls = process.scaler_tls_dir.as_deref().map(tls::Server::for_scaler).transpose();
    let tls = tls.map_err(StartError::ScalerTls)?.map(Arc::new);
    info!(address = %bound, port_name = "scaler", "listening");
    Ok(Some(scaler::Port { acceptor, tls }))
}

/// Binds the control listener, if one is configured.
async fn bind_control(address: Option<&Address>) -> Result<Option<Control>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| StartError::Control { address: address.clone(), source };
    Control::bind(address).await.map(Some).map_err(failed)
}
