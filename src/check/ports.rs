//! Whether the proxy could listen on its ports, or already does.

use std::{io, path::Path, time::Duration};

use http::{Method, StatusCode};
use tokio::net::{TcpListener, UnixStream};

use super::Findings;
use crate::{
    address::{Address, HostPort},
    admin_client::{Credentials, ProxyAddress, Question, send},
    config::{LocalAddress, Pool, Process},
};

/// How long a running proxy may take to say that it lives.
const LIMIT: Duration = Duration::from_secs(5);

/// The longest answer of a running proxy.
const LONGEST: usize = 4096;

/// Checks the ports of the `pools` and of the process.
pub(super) async fn check(pools: &[Pool], process: &Process, findings: &mut Findings) {
    let admin = tcp(&process.admin_listen);
    let running = is_proxy(&admin).await;
    let mut ports = vec![("--admin-listen", admin)];
    ports.extend(pools.iter().flat_map(|pool| &pool.listen).map(|port| ("--listen", port.clone())));
    ports.extend(process.scaler_listen.as_ref().map(|port| ("--scaler-listen", tcp(port))));
    let control = process.control_listen.as_ref();
    ports.extend(control.map(|LocalAddress(port)| ("--control-listen", port.clone())));
    for (flag, port) in ports {
        let subject = format!("port {port}");
        let failure = match bind(&port).await {
            Ok(()) => {
                findings.ok(&subject, "the proxy can listen here");
                continue;
            }
            Err(error) => error,
        };
        if failure.kind() != io::ErrorKind::AddrInUse {
            let advice = format!("name another address with {flag}");
            findings.error(&subject, format!("cannot listen: {failure}"), &advice);
        } else if running {
            findings.ok(&subject, "in use, and a proxy runs: it answers on the admin port");
        } else {
            let advice =
                format!("end the program that uses it, or name another address with {flag}");
            findings.error(&subject, "in use, but no proxy answers on the admin port", &advice);
        }
    }
}

fn tcp(HostPort { host, port }: &HostPort) -> Address {
    Address::Tcp { host: host.clone(), port: *port }
}

/// Binds `address` for a moment. The path of a Unix socket is only looked at.
async fn bind(address: &Address) -> io::Result<()> {
    match address {
        Address::Tcp { host, port } => TcpListener::bind((host.as_str(), *port)).await.map(drop),
        Address::Unix(path) if path.exists() => match UnixStream::connect(path).await {
            Ok(_open) => Err(io::ErrorKind::AddrInUse.into()),
            // A process that is gone has left the socket. The proxy replaces it.
            Err(_closed) => Ok(()),
        },
        Address::Unix(path) => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            std::fs::metadata(directory).map(drop)
        }
    }
}

/// Whether a proxy answers on its admin port, with TLS or without.
async fn is_proxy(admin: &Address) -> bool {
    let question = Question { method: Method::GET, path: "/livez", limit: LIMIT, longest: LONGEST };
    for address in ProxyAddress::of(admin).await.unwrap_or_default() {
        match send(&address, &question, &Credentials::default()).await {
            Ok((StatusCode::OK, text)) if text == "ok" => return true,
            Ok((StatusCode::BAD_REQUEST, text)) if text.contains("HTTP over TLS") => return true,
            _ => {}
        }
    }
    false
}
