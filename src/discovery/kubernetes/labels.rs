//! The version, architecture and zone of daemons, by the labels of their pods.
//!
//! Needs the verbs get, list and watch on pods in the namespace. Without them, daemons are found, but their labels are
//! unknown. Only the metadata of pods is read, and only these labels are kept.

use std::{collections::HashMap, pin::pin, sync::Arc};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::watcher::{self, watcher},
};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    fleet::{Endpoint, Labels},
    kubernetes::{failure, known::Known, watching},
    metrics::Metrics,
    outage::Outage,
};

/// The labels of each pod, by its uid.
pub(super) type ByPod = HashMap<Arc<str>, Labels>;

/// Adds the labels of their pods to `endpoints`.
pub(super) fn add(labels: &ByPod, endpoints: &mut [Endpoint]) {
    for location in endpoints.iter_mut().map(|endpoint| &mut endpoint.location) {
        let known = location.pod.as_ref().and_then(|pod| labels.get(&pod.uid));
        if let Some(known) = known {
            location.labels = known.clone();
            location.zone = location.zone.take().or_else(|| known.zone.clone());
        }
    }
}

/// Follows the pods of `namespace` forever. A failure is logged once, and then retried.
pub(super) async fn follow(
    client: &Client,
    namespace: &str,
    metrics: &Metrics,
    told: &watch::Sender<ByPod>,
) {
    let mut outage = Outage::default();
    loop {
        let failed = follow_once(client, namespace, told, &mut outage).await;
        if let Some(error) = failed.filter(|error| !failure::is_expired(error)) {
            let (verb, reason, text) = failure::describe(&error, "pods", namespace);
            metrics.pod_error(verb, reason);
            if outage.failed(&text) {
                warn!(error = text, "cannot read pod labels");
            }
        }
        tokio::time::sleep(outage.wait()).await;
    }
}

/// Reads all pods, then follows their changes until something fails.
async fn follow_once(
    client: &Client,
    namespace: &str,
    told: &watch::Sender<ByPod>,
    outage: &mut Outage,
) -> Option<watcher::Error> {
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(client.clone(), namespace);
    let mut events = pin!(watcher(api, watching()));
    let mut known = Known::default();
    loop {
        let event = match events.next().await {
            Some(Ok(event)) => event,
            failed => return failed.and_then(Result::err),
        };
        if known.apply(event.modify(strip)) {
            if outage.over() {
                info!("pod labels are read again");
            }
            let now: ByPod = known.objects().filter_map(labels).collect();
            told.send_if_modified(|old| {
                let changed = *old != now;
                *old = now;
                changed
            });
        }
    }
}

/// Drops all other metadata, because a namespace may have many pods.
fn strip(pod: &mut PartialObjectMeta<Pod>) {
    pod.managed_fields_mut().clear();
    pod.annotations_mut().clear();
    pod.labels_mut().retain(|key, _value| KEYS.contains(&key.as_str()));
}

/// The labels that are kept.
const KEYS: [&str; 3] =
    ["app.kubernetes.io/version", "kubernetes.io/arch", "topology.kubernetes.io/zone"];

/// A pod's uid and labels, if it has any of these.
fn labels(pod: &PartialObjectMeta<Pod>) -> Option<(Arc<str>, Labels)> {
    let [version, architecture, zone] =
        KEYS.map(|key| pod.labels().get(key).filter(|text| !text.is_empty()).map(|t| t[..].into()));
    let labels = Labels { version, architecture, zone };
    let uid = pod.uid().filter(|_uid| labels != Labels::default())?;
    Some((uid.into(), labels))
}
