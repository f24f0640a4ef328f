//! Annotates pods with their builds, for Kubernetes: the ReplicaSet controller ends the pods with the lowest deletion
//! cost first, and the cluster autoscaler spares pods that are not safe to evict.
//!
//! Needs the verb patch on pods. The proxy counts only its own builds, and never reads the annotations: it writes them
//! at each change, and every 30 s for a pod with builds. An annotation that another proxy, or one that was killed, has
//! left is therefore right again after 30 s, and two proxies never react to each other's writes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    StreamExt as _,
    stream::{FuturesUnordered, iter},
};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    fleet::{Fleet, Pod},
    kubernetes::failure::Question,
    metrics::{Metrics, PodVerb},
    outage::Outage,
};

/// The ReplicaSet controller deletes the pods with the lowest cost first. Without the annotation the cost is 0.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Whether the cluster autoscaler may evict a pod to remove its node.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// The time between two patches. An API server does not notice ten patches per second.
const PACE: Duration = Duration::from_millis(100);

/// The most patches at once, so that a slow API server does not get more and more of them.
const AT_ONCE: usize = 4;

/// A patch that takes longer than this has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a changed number must stay the same before it is written, because the next build often comes soon.
const SETTLE: Duration = Duration::from_secs(5);

/// How often the annotations of a pod with builds are written again, because another proxy may have changed them.
const AGAIN: Duration = Duration::from_secs(30);

/// How long a proxy that ends waits until its pods are annotated as idle.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Which annotations are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// The number of builds, for the ReplicaSet controller.
    pub deletion_cost: bool,
    /// Whether the pod has no build, for the cluster autoscaler.
    pub safe_to_evict: bool,
}

impl Config {
    /// Whether any annotation is written.
    pub fn any(self) -> bool {
        self.deletion_cost || self.safe_to_evict
    }

    /// The patch that annotates `pod`. It has the pod's uid, so that the pod's successor does not accept it.
    fn patch(self, pod: &Pod, builds: u32) -> Value {
        let mut annotations = serde_json::Map::new();
        if self.deletion_cost {
            // Without the annotation the cost is 0.
            let cost = (builds > 0).then(|| builds.to_string());
            annotations.insert(DELETION_COST.to_owned(), cost.into());
        }
        if self.safe_to_evict {
            annotations.insert(SAFE_TO_EVICT.to_owned(), (builds == 0).to_string().into());
        }
        json!({"metadata": {"uid": &*pod.uid, "annotations": annotations}})
    }
}

/// The number of builds that was written to a pod, and the current one.
#[derive(Debug)]
struct Annotated {
    /// The number of builds that was written last, if any was.
    builds: Option<u32>,
    /// The number of builds it has.
    now: u32,
    /// When the current number became different from the written one.
    since: Instant,
    /// When the number was written.
    at: Instant,
}

/// How urgent a patch is, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// The first build of a pod, which must no longer count as idle.
    Busy,
    /// The number has changed.
    Changed,
    /// The proxy has not written to this pod yet, and an earlier proxy may have.
    Unknown,
    /// The number is written again.
    Again,
}

impl Annotated {
    fn new(now: Instant) -> Self {
        Self { builds: None, now: 0, since: now, at: now }
    }

    fn has(&mut self, builds: u32, now: Instant) {
        // A build that began and ended between two observations counts, too: the pod was not idle.
        if self.now != builds || self.builds == Some(builds) {
            self.since = now;
        }
        self.now = builds;
    }

    /// How urgent a patch is, if it is time for one.
    fn urgency(&self, now: Instant) -> Option<Urgency> {
        let settled = now >= self.since + SETTLE;
        match (self.builds, self.now) {
            (None | Some(0), 1..) => Some(Urgency::Busy),
            (None, 0) => Some(Urgency::Unknown),
            (Some(old), new) if old != new => settled.then_some(Urgency::Changed),
            (Some(1..), _) if now >= self.at + AGAIN => Some(Urgency::Again),
            _ => None,
        }
    }

    fn written(&mut self, builds: u32, now: Instant) {
        self.builds = Some(builds);
        self.at = now;
    }
}

/// Annotates all pods in `fleet` until `stop`, and then annotates them as idle.
pub async fn run(
    client: Client,
    fleet: Arc<Fleet>,
    config: Config,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut pods = HashMap::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep(&client, &fleet, config, &metrics, &mut pods) => {}
    }
    pods.retain(|_pod, annotated| annotated.builds.is_some_and(|builds| builds > 0));
    let idle: Vec<_> = pods.into_keys().map(|pod| write(&client, config, pod, 0)).collect();
    // The next proxy annotates the pods for which there is no time left.
    let idle = iter(idle).buffer_unordered(AT_ONCE).for_each(async |_written| {});
    let _ = tokio::time::timeout(LAST_WORD, idle).await;
}

async fn keep(
    client: &Client,
    fleet: &Fleet,
    config: Config,
    metrics: &Metrics,
    pods: &mut HashMap<Pod, Annotated>,
) {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut writes = FuturesUnordered::new();
    let mut busy = HashSet::new();
    let mut refusals = Refusals::default();
    loop {
        tokio::select! {
            Some((pod, builds, result)) = writes.next() => {
                busy.remove(&pod);
                let pod: Pod = pod;
                let settled = match result {
                    Ok(()) => {
                        metrics.pod_patches.inc();
                        refusals.over();
                        true
                    }
                    // The pod is gone, or its successor has its name.
                    Err(Failed::Gone) => true,
                    Err(Failed::Asked(error)) => {
                        refusals.tell(&error, &pod, metrics);
                        false
                    }
                };
                if let Some(annotated) = pods.get_mut(&pod).filter(|_annotated| settled) {
                    annotated.written(builds, Instant::now());
                }
            }
            _ = pace.tick() => {
                let now = Instant::now();
                observe(fleet, pods, now);
                if writes.len() >= AT_ONCE || now < refusals.until {
                    continue;
                }
                let due = pods.iter().filter(|(pod, _annotated)| !busy.contains(*pod));
                let due = due.filter_map(|(pod, annotated)| Some((annotated.urgency(now)?, annotated.since, pod)));
                if let Some((_urgency, _since, pod)) = due.min() {
                    let (pod, builds) = (pod.clone(), pods[pod].now);
                    busy.insert(pod.clone());
                    writes.push(write(client, config, pod, builds));
                }
            }
        }
    }
}

/// Takes the pods and their builds from the fleet.
fn observe(fleet: &Fleet, pods: &mut HashMap<Pod, Annotated>, now: Instant) {
    let backends = fleet.backends();
    let mut there = HashMap::with_capacity(backends.len());
    for backend in backends.iter() {
        if let Some(pod) = &backend.location().pod {
            // A session without a build will have one soon, or has just had one.
            let builds = backend.builds().max(u32::from(backend.is_bound()));
            there.insert(pod.clone(), builds);
        }
    }
    pods.retain(|pod, _annotated| there.contains_key(pod));
    for (pod, builds) in there {
        pods.entry(pod).or_insert_with(|| Annotated::new(now)).has(builds, now);
    }
}

/// Why a pod could not be annotated.
#[derive(Debug)]
enum Failed {
    /// The pod is gone.
    Gone,
    /// The API server refused, or did not answer in time.
    Asked(Option<kube::Error>),
}

async fn write(
    client: &Client,
    config: Config,
    pod: Pod,
    builds: u32,
) -> (Pod, u32, Result<(), Failed>) {
    let api: Api<PartialObjectMeta<PodObject>> = Api::namespaced(client.clone(), &pod.namespace);
    let params = PatchParams { field_manager: Some("buildkit-lb".into()), ..Default::default() };
    let patch = Patch::Merge(config.patch(&pod, builds));
    let result = match tokio::time::timeout(TIMEOUT, api.patch(&pod.name, &params, &patch)).await {
        Ok(Ok(_pod)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409 | 422) => {
            Err(Failed::Gone)
        }
        Ok(Err(error)) => Err(Failed::Asked(Some(error))),
        Err(_elapsed) => Err(Failed::Asked(None)),
    };
    (pod, builds, result)
}

/// The outage of the API server, which is logged once, and the time of the next attempt.
#[derive(Debug)]
struct Refusals {
    outage: Outage,
    /// No patch is sent before this time.
    until: Instant,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { outage: Outage::default(), until: Instant::now() }
    }
}

impl Refusals {
    fn tell(&mut self, error: &Option<kube::Error>, pod: &Pod, metrics: &Metrics) {
        let (verb, resource, namespace) = (PodVerb::Patch, "pods", &*pod.namespace);
        let question = Question { verb, resource, namespace, verbs: "verb patch" };
        let status = match error {
            Some(kube::Error::Api(status)) => Some(&**status),
            _ => None,
        };
        let (reason, text) = match error {
            Some(error) => question.describe(error, status),
            None => question.describe(&std::io::Error::from(std::io::ErrorKind::TimedOut), None),
        };
        metrics.pod_error(verb, reason);
        if self.outage.failed(&text) {
            warn!(error = text, "cannot annotate pods");
        }
        self.until = Instant::now() + self.outage.wait();
    }

    fn over(&mut self) {
        if self.outage.over() {
            info!("pods are annotated again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_build_is_written_at_once_and_an_idle_pod_after_a_while() {
        let start = Instant::now();
        let mut annotated = Annotated::new(start);
        assert_eq!(annotated.urgency(start), Some(Urgency::Unknown));
        annotated.written(0, start);
        assert_eq!(annotated.urgency(start + AGAIN * 9), None);
        annotated.has(2, start);
        assert_eq!(annotated.urgency(start), Some(Urgency::Busy));
        annotated.written(2, start);
        annotated.has(3, start);
        assert_eq!(annotated.urgency(start), None, "a number may wait");
        assert_eq!(annotated.urgency(start + SETTLE), Some(Urgency::Changed));
        annotated.has(2, start + SETTLE);
        assert_eq!(annotated.urgency(start + SETTLE), None);
        assert_eq!(annotated.urgency(start + AGAIN), Some(Urgency::Again));
        annotated.has(0, start + SETTLE);
        annotated.has(1, start + SETTLE * 3 / 2);
        annotated.has(0, start + SETTLE * 2);
        assert_eq!(annotated.urgency(start + SETTLE * 5 / 2), None, "it has built meanwhile");
        assert_eq!(annotated.urgency(start + SETTLE * 3), Some(Urgency::Changed));
    }

    #[test]
    fn a_patch_is_for_one_pod_and_says_what_was_asked_for() {
        let (namespace, name, uid) = ("n".into(), "p".into(), "u".into());
        let pod = Pod { namespace, name, uid };
        let both = Config { deletion_cost: true, safe_to_evict: true };
        let expected = json!({"metadata": {"uid": "u", "annotations": {
            "controller.kubernetes.io/pod-deletion-cost": "2",
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        }}});
        assert_eq!(both.patch(&pod, 2), expected);
        let cost = Config { deletion_cost: true, safe_to_evict: false };
        let expected = json!({"metadata": {"uid": "u", "annotations": {
            "controller.kubernetes.io/pod-deletion-cost": null,
        }}});
        assert_eq!(cost.patch(&pod, 0), expected);
    }
}
