//! A proxy with mutual TLS on both sides, and what connects to it.

use std::{path::Path, process::Output};

use crate::support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::{Context, build, buildctl_tls, run, succeed},
    proxy::{Builder, Proxy},
};

/// Both authorities of a proxy with mutual TLS on both sides.
pub(crate) struct Authorities {
    pub(crate) clients: Authority,
    pub(crate) daemons: Authority,
}

impl Authorities {
    pub(crate) fn new() -> Self {
        Self { clients: Authority::new("of clients"), daemons: Authority::new("of daemons") }
    }

    /// A daemon that accepts only certificates of its authority.
    pub(crate) fn daemon(&self, name: &str, request: &Request<'_>) -> Buildkitd {
        daemon(&self.daemons, name, request)
    }

    /// A proxy that shows certificates on both sides.
    pub(crate) fn proxy(&self, daemons: &[Buildkitd]) -> Builder {
        let own = self.clients.directory("proxy", &Request::SERVER);
        let to_daemons = self.daemons.directory("proxy", &Request::CLIENT);
        with_tls(daemons, &own, &to_daemons)
    }
}

/// A daemon that accepts only certificates of `authority`.
pub(crate) fn daemon(authority: &Authority, name: &str, request: &Request<'_>) -> Buildkitd {
    let own = authority.directory(&format!("daemon-{name}"), request);
    Buildkitd::start_tls(name, &own, &authority.directory("tester", &Request::CLIENT))
}

/// A proxy with the certificates of these directories, for clients and for daemons.
pub(crate) fn with_tls(daemons: &[Buildkitd], clients: &Path, backends: &Path) -> Builder {
    let text = |directory: &Path| directory.to_str().expect("UTF-8").to_owned();
    let (clients, backends) = (text(clients), text(backends));
    Proxy::in_front_of(daemons).args(&["--tls-dir", &clients, "--backend-tls-dir", &backends])
}

/// `buildctl debug workers` with the certificates in `directory`.
pub(crate) fn workers(proxy: &Proxy, directory: &Path) -> Output {
    run(buildctl_tls(&proxy.addr(), directory).args(["debug", "workers"]))
}

/// Builds something; the build must succeed.
pub(crate) fn builds(proxy: &Proxy, directory: &Path, step: &str) {
    let context = Context::busybox(&format!("RUN echo {step}"));
    succeed(&mut build(buildctl_tls(&proxy.addr(), directory), &context));
}
