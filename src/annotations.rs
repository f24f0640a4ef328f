//! Tells Kubernetes which pods have builds, by annotations of the pods: the ReplicaSet controller ends the
//! cheapest pods first, the cluster autoscaler spares those that are not safe to evict.
//!
//! Needs the verb patch on pods. It knows of this proxy's builds alone and writes without asking what is
//! there: at each change, and for a pod with builds again and again. So what another proxy, or one that
//! was killed, has left is right again half a minute later, and two proxies never answer each other's writes.

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

/// How the ReplicaSet controller ranks the pods it may delete: the lowest first, none is 0.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Whether the cluster autoscaler may move a pod to tidy up its node.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";

/// One patch in this time: ten in a second are no load for an API server, whatever the fleet does.
const PACE: Duration = Duration::from_millis(100);

/// Patches under way at once: an API server that answers late is not asked for more.
const AT_ONCE: usize = 4;

/// A patch that takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long a pod has to be idle, or a number old, before it is written: the next build comes soon.
const SETTLE: Duration = Duration::from_secs(5);

/// How often what a pod with builds was told is said again: someone else may have written since.
const AGAIN: Duration = Duration::from_secs(30);

/// How long the proxy's end waits until its pods are told that they are idle.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Which annotations are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// The number of builds, for whoever makes a Deployment smaller.
    pub deletion_cost: bool,
    /// Whether there are none, for the cluster autoscaler.
    pub safe_to_evict: bool,
}

impl Config {
    /// Whether there is anything to do.
    pub fn any(self) -> bool {
        self.deletion_cost || self.safe_to_evict
    }

    /// The patch that tells `pod` of its builds; no other pod of that name takes it.
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

/// What a pod was told, and what is to be told.
#[derive(Debug)]
struct Told {
    /// The number of builds that was written last, if any was.
    builds: Option<u32>,
    /// The number of builds it has.
    now: u32,
    /// When that became different from what was written.
    since: Instant,
    /// When it was written.
    at: Instant,
}

/// How much a patch matters, the most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    /// Its first build: it must not be taken for idle.
    Busy,
    /// Another number, or none any more.
    Changed,
    /// What a proxy before may have left is not known.
    Unknown,
    /// The same again.
    Again,
}

impl Told {
    fn new(now: Instant) -> Self {
        Self { builds: None, now: 0, since: now, at: now }
    }

    fn has(&mut self, builds: u32, now: Instant) {
        // A build between two looks counts: the pod was not idle.
        if self.now != builds || self.builds == Some(builds) {
            self.since = now;
        }
        self.now = builds;
    }

    /// Whether it is time to write.
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

/// Keeps the annotations of all pods in `fleet` until `stop`, and then tells them that they are idle.
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
    pods.retain(|_pod, told| told.builds.is_some_and(|builds| builds > 0));
    let idle: Vec<_> = pods.into_keys().map(|pod| write(&client, config, pod, 0)).collect();
    // Whoever is not told in time is told by the next proxy.
    let idle = iter(idle).buffer_unordered(AT_ONCE).for_each(async |_written| {});
    let _ = tokio::time::timeout(LAST_WORD, idle).await;
}

async fn keep(
    client: &Client,
    fleet: &Fleet,
    config: Config,
    metrics: &Metrics,
    pods: &mut HashMap<Pod, Told>,
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
                    // It is not there any more, or another one has its name.
                    Err(Failed::Gone) => true,
                    Err(Failed::Asked(error)) => {
                        refusals.tell(&error, &pod, metrics);
                        false
                    }
                };
                if let Some(told) = pods.get_mut(&pod).filter(|_told| settled) {
                    told.written(builds, Instant::now());
                }
            }
            _ = pace.tick() => {
                let now = Instant::now();
                observe(fleet, pods, now);
                if writes.len() >= AT_ONCE || now < refusals.until {
                    continue;
                }
                let due = pods.iter().filter(|(pod, _told)| !busy.contains(*pod));
                let due = due.filter_map(|(pod, told)| Some((told.urgency(now)?, told.since, pod)));
                if let Some((_urgency, _since, pod)) = due.min() {
                    let (pod, builds) = (pod.clone(), pods[pod].now);
                    busy.insert(pod.clone());
                    writes.push(write(client, config, pod, builds));
                }
            }
        }
    }
}

/// Takes over what the fleet is now.
fn observe(fleet: &Fleet, pods: &mut HashMap<Pod, Told>, now: Instant) {
    let backends = fleet.backends();
    let mut there = HashMap::with_capacity(backends.len());
    for backend in backends.iter() {
        if let Some(pod) = &backend.location().pod {
            // A session without a build is one that will have some, or has just had one.
            let builds = backend.builds().max(u32::from(backend.is_bound()));
            there.insert(pod.clone(), builds);
        }
    }
    pods.retain(|pod, _told| there.contains_key(pod));
    for (pod, builds) in there {
        pods.entry(pod).or_insert_with(|| Told::new(now)).has(builds, now);
    }
}

/// Why a pod was not told.
#[derive(Debug)]
enum Failed {
    /// It is no more.
    Gone,
    /// The API server does not do it.
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

/// What keeps pods from being told: said once, and waited for.
#[derive(Debug)]
struct Refusals {
    outage: Outage,
    /// Nothing is asked before.
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
    fn a_first_build_is_told_at_once_and_an_idle_pod_after_a_while() {
        let start = Instant::now();
        let mut told = Told::new(start);
        assert_eq!(told.urgency(start), Some(Urgency::Unknown));
        told.written(0, start);
        assert_eq!(told.urgency(start + AGAIN * 9), None);
        told.has(2, start);
        assert_eq!(told.urgency(start), Some(Urgency::Busy));
        told.written(2, start);
        told.has(3, start);
        assert_eq!(told.urgency(start), None, "a number may wait");
        assert_eq!(told.urgency(start + SETTLE), Some(Urgency::Changed));
        told.has(2, start + SETTLE);
        assert_eq!(told.urgency(start + SETTLE), None);
        assert_eq!(told.urgency(start + AGAIN), Some(Urgency::Again));
        told.has(0, start + SETTLE);
        told.has(1, start + SETTLE * 3 / 2);
        told.has(0, start + SETTLE * 2);
        assert_eq!(told.urgency(start + SETTLE * 5 / 2), None, "it has built meanwhile");
        assert_eq!(told.urgency(start + SETTLE * 3), Some(Urgency::Changed));
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
