//! The daemons behind a Kubernetes Service, followed by its EndpointSlices.
//!
//! Needs the verbs get, list and watch on endpointslices in the Service's namespace, and the same verbs on pods if their
//! labels are wanted. After any failure of the watch, all slices are read again, so that no change is missed. Until all
//! are read, the fleet stays as it was.

mod labels;
mod service;
mod slices;

use std::{pin::pin, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::watcher::{self, watcher},
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use self::labels::ByPod;
pub(super) use self::service::is_name;
pub use self::service::{Port, Service};
use super::Source;
use crate::{
    kubernetes::{failure, known::Known, watching},
    outage::{Backoff, Reason},
    tls::Expected,
};

/// Changes within this time become one new fleet: a roll-out changes the slices many times a second.
const GATHER: Duration = Duration::from_millis(50);

/// How often a working watch is reported as such.
const CONFIRM: Duration = Duration::from_secs(5);

/// The resource that is watched.
const SLICES: &str = "endpointslices.discovery.k8s.io";

/// The label by which slices belong to a Service.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Follows `service` until `stop`. With `pod_details`, also follows the labels of the pods in its namespace.
pub async fn run(
    client: Client,
    service: Service,
    pod_details: bool,
    source: Source,
    stop: CancellationToken,
) {
    let (told, labels) = watch::channel(ByPod::default());
    let details = async {
        if pod_details {
            labels::follow(&client, &service.namespace, source.metrics(), &told).await;
        }
        // Without labels, this branch must never complete.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = details => {}
        () = follow_always(&client, &service, labels, &source) => {}
    }
}

/// Follows the slices, and begins again after each failure.
async fn follow_always(
    client: &Client,
    service: &Service,
    mut labels: watch::Receiver<ByPod>,
    source: &Source,
) {
    let mut backoff = Backoff::default();
    loop {
        let error = follow(client, service, &mut labels, source, &mut backoff).await;
        match error {
            // A watch normally ends like this. The slices are read again at once.
            Some(error) if failure::is_expired(&error) => {
                debug!(source = %service, "watch expired");
                source.count_error(Reason::Expired);
            }
            Some(error) => {
                let (_verb, reason, text) = failure::describe(&error, SLICES, &service.namespace);
                source.failed(reason, text);
            }
            None => {}
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// Reads all slices, then follows their changes until something fails.
async fn follow(
    client: &Client,
    service: &Service,
    labels: &mut watch::Receiver<ByPod>,
    source: &Source,
    backoff: &mut Backoff,
) -> Option<watcher::Error> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &service.namespace);
    let config = watching().labels(&format!("{SERVICE_LABEL}={}", service.name));
    let mut events = pin!(watcher(api, config));
    let mut known = Known::default();
    let mut publish_at: Option<Instant> = None;
    let mut confirm = tokio::time::interval(CONFIRM);
    loop {
        // The first change sets the time, so that a steady stream of changes cannot delay the new fleet.
        let due = async {
            match publish_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    if known.apply(event) {
                        *backoff = Backoff::default();
                        publish_at.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                }
                failed => {
                    // The changes that came before the failure are still right.
                    if publish_at.is_some() {
                        publish(&known, service, labels, source);
                    }
                    return failed.and_then(Result::err);
                }
            },
            () = due => {
                publish_at = None;
                publish(&known, service, labels, source);
            }
            Ok(()) = labels.changed() => {
                if known.is_complete() {
                    publish_at.get_or_insert_with(|| Instant::now() + GATHER);
                }
            }
            // What is still to be published confirms itself.
            _ = confirm.tick() => if known.is_complete() && publish_at.is_none() {
                source.confirmed();
            },
        }
    }
}

fn publish(
    known: &Known<EndpointSlice>,
    service: &Service,
    labels: &mut watch::Receiver<ByPod>,
    source: &Source,
) {
    let mut endpoints =
        slices::endpoints(known.objects(), &service.port, source.metrics_port_name());
    labels::add(&labels.borrow_and_update(), &mut endpoints);
    let entries = known.objects().any(|slice| slice.endpoints.iter().flatten().count() > 0);
    let Service { namespace, name, port } = service;
    // One certificate for all pods of a Service is the usual one.
    let server_name = Expected::Discovered(format!("{name}.{namespace}.svc").into());
    for endpoint in &mut endpoints {
        endpoint.server_name = server_name.clone();
    }
    let missing = match (&endpoints[..], port) {
        _ if known.is_empty() => Some(format!(
            "namespace {namespace} has no endpoint slices of a service {name}: \
             is there such a service, with a selector?"
        )),
        ([], _) if !entries => Some(format!("service {name} has no pods")),
        ([], Port::Usual | Port::Name(_)) => Some(format!(
            "service {name} has no port {}, but: {}",
            match port {
                Port::Name(name) => name,
                _ => "buildkit, buildkitd, grpc or tcp",
            },
            slices::port_names(known.objects())
        )),
        _ => None,
    };
    source.found(endpoints, missing);
}

#[cfg(test)]
mod tests;
