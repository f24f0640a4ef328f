//! Endpoint slices that the test itself writes to a real API server. The proxy follows them, however many there are
//! and however often they change.

mod support;

use std::{
    collections::BTreeMap,
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use support::{
    client::{Context, buildctl_build, succeed},
    eventually,
    kubernetes::{Cluster, pod::PodDaemon},
    proxy::{Builder, Proxy},
};
use tokio::runtime::Runtime;

/// An API server without controllers, so that nobody else writes slices.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::bare)
}

/// The slices of a Service, written through the API.
struct Slices {
    runtime: Runtime,
    api: Api<EndpointSlice>,
}

impl Slices {
    fn new(cluster: &Cluster, namespace: &str) -> Self {
        cluster.namespace(namespace);
        let runtime = Runtime::new().expect("a runtime");
        let client = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(cluster.server().kubeconfig()).expect("read");
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            Client::try_from(config.expect("valid")).expect("a client")
        });
        Self { runtime, api: Api::namespaced(client, namespace) }
    }

    fn create(&self, name: &str, family: &str, endpoints: &[Value]) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "buildkitd"}},
            "ports": [{"name": "buildkit", "port": 1234}],
            "endpoints": endpoints,
        });
        let slice = serde_json::from_value(slice).expect("a slice");
        let params = PostParams::default();
        self.runtime.block_on(self.api.create(&params, &slice)).expect("created");
    }

    fn change(&self, name: &str, operations: &Value) {
        self.runtime.block_on(change(&self.api, name, operations));
    }
}

/// A JSON patch.
async fn change(api: &Api<EndpointSlice>, name: &str, operations: &Value) {
    let patch = serde_json::from_value(operations.clone()).expect("a JSON patch");
    let patch = Patch::Json::<()>(patch);
    api.patch(name, &PatchParams::default(), &patch).await.expect("patched");
}

/// A pod's entry: `t`, `f` or `-` for ready, serving and terminating.
fn entry(pod: &str, address: &str, conditions: &str) -> Value {
    let words = ["ready", "serving", "terminating"].into_iter().zip(conditions.chars());
    let known = words.filter(|(_word, flag)| *flag != '-');
    let conditions: BTreeMap<_, _> = known.map(|(word, flag)| (word, flag == 't')).collect();
    json!({
        "addresses": [address], "conditions": conditions,
        "targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-of-{pod}")},
    })
}

/// Each backend's address and state, by name.
fn backends(proxy: &Proxy) -> BTreeMap<String, (String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let status = proxy.status();
    let backends = status["backends"].as_array().expect("a list").iter();
    backends.map(|b| (text(&b["name"]), (text(&b["address"]), text(&b["state"])))).collect()
}

#[test]
fn slices_mean_what_kubernetes_means_by_them() {
    let cluster = cluster();
    let slices = Slices::new(cluster, "meaning");
    let kubeconfig = cluster.account("meaning", &[]);
    let daemon = PodDaemon::start("all");
    let third = daemon.answer_for_many();
    let ip = |n: u8| format!("10.214.{third}.{n}");
    let four = [
        entry("silent", &ip(1), "---"),
        entry("ready", &ip(2), "ttf"),
        entry("unready", &ip(3), "fff"),
        entry("not-serving", &ip(4), "tff"),
        entry("ending", &ip(5), "ftt"),
        entry("ended", &ip(6), "fft"),
        // As with publishNotReadyAddresses: `ready` promises nothing.
        entry("published", &ip(7), "ttt"),
    ];
    // One pod in two slices that contradict each other, and one address under two names.
    let more = [
        entry("ready", &ip(2), "fff"),
        entry("ended-too", &ip(1), "fft"),
        entry("further", &ip(8), "t--"),
    ];
    let six = [entry("ready", "fd00::2", "ttf"), entry("only-six", "fd00::9", "ttf")];
    slices.create("four", "IPv4", &four);
    slices.create("more", "IPv4", &more);
    slices.create("six", "IPv6", &six);
    let proxy = Builder::default().discover("meaning/buildkitd", &kubeconfig).start();
    let ready = ["silent", "ready", "further"];
    eventually("those that are ready are probed", Duration::from_secs(20), || {
        let backends = backends(&proxy);
        let is_ready = |name: &&str| backends.get(*name).is_some_and(|(_, s)| s == "ready");
        ready.iter().all(is_ready).then_some(())
    });
    let found = backends(&proxy);
    let expected = [
        ("ended", 6, "draining"),
        ("ending", 5, "draining"),
        ("further", 8, "ready"),
        ("not-serving", 4, "unhealthy"),
        ("published", 7, "draining"),
        ("ready", 2, "ready"),
        ("silent", 1, "ready"),
        ("unready", 3, "unhealthy"),
    ];
    for (name, n, state) in expected {
        let backend = (format!("tcp://{}:1234", ip(n)), state.to_owned());
        assert_eq!(found.get(name), Some(&backend), "{name}: {found:?}");
    }
    assert_eq!(found["only-six"].0, "tcp://[fd00::9]:1234");
    assert_eq!(found.len(), expected.len() + 1, "{found:?}");
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo found")));

    // The proxy follows changes. A backend that leaves with nothing bound to it is gone at once.
    let change = json!([
        {"op": "replace", "path": "/endpoints/2/conditions", "value": {"ready": true}},
        {"op": "remove", "path": "/endpoints/4"},
    ]);
    slices.change("four", &change);
    eventually("the change is followed", Duration::from_secs(20), || {
        let backends = backends(&proxy);
        (backends["unready"].1 == "ready" && !backends.contains_key("ending")).then_some(())
    });
}

/// The number of slices, the endpoints in each, and the changes of each per second.
const SLICES: usize = 10;
const ENDPOINTS: usize = 100;
const RATE: u64 = 10;
/// How long the changes go on.
const BURST: Duration = Duration::from_secs(10);

#[test]
fn a_thousand_endpoints_with_a_hundred_changes_a_second_are_followed_within_a_second() {
    let cluster = cluster();
    let slices = Slices::new(cluster, "many");
    let kubeconfig = cluster.account("many", &[]);
    let daemon = PodDaemon::start("all");
    let third = daemon.answer_for_many();
    let ip = move |n: usize| format!("10.214.{}.{}", usize::from(third) + n / 250, n % 250 + 1);
    let proxy = Builder::default().discover("many/buildkitd", &kubeconfig).start();
    // The expected backends at the end: name, address, whether it is ready.
    let mut expected = Vec::new();
    for slice in 0..SLICES {
        let pods = (0..ENDPOINTS).map(|at| {
            let n = slice * ENDPOINTS + at;
            (format!("pod-{n}"), ip(n), true)
        });
        let pods: Vec<_> = pods.collect();
        let entries: Vec<_> = pods.iter().map(|(pod, ip, _)| entry(pod, ip, "ttf")).collect();
        slices.create(&format!("s{slice}"), "IPv4", &entries);
        expected.push(pods);
    }
    proxy.wait_ready(1000, Duration::from_secs(60));
    let quiet = proxy.process.cpu();
    std::thread::sleep(BURST);
    let quiet = proxy.process.cpu() - quiet;

    let (cpu, start) = (proxy.process.cpu(), Instant::now());
    let (written, follow) = mpsc::channel::<(String, Instant)>();
    let (expected, mut delays) = std::thread::scope(|scope| {
        let follower = scope.spawn(|| {
            let mut delays = Vec::new();
            for (pod, at) in follow {
                let path = format!("/backends/{pod}/builds");
                eventually("a new pod is followed", Duration::from_secs(30), || {
                    (proxy.admin("GET", &path).0 == 200).then_some(())
                });
                delays.push(at.elapsed());
            }
            delays
        });
        let writers = expected.into_iter().enumerate().map(|(slice, mut pods)| {
            let (api, written) = (slices.api.clone(), written.clone());
            let first = SLICES * ENDPOINTS + slice * 100;
            slices.runtime.spawn(async move {
                let mut tick = tokio::time::interval(Duration::from_millis(1000 / RATE));
                for n in 0..BURST.as_secs() * RATE {
                    tick.tick().await;
                    let n = usize::try_from(n).expect("small");
                    // Every fourth change replaces a pod; the others change its readiness.
                    let at = n * 37 % ENDPOINTS;
                    let (pod, new) = (&mut pods[at], n % 4 == 0);
                    *pod = match new {
                        true => (format!("pod-{}", first + n), ip(first + n), true),
                        false => (pod.0.clone(), pod.1.clone(), !pod.2),
                    };
                    let conditions = if pod.2 { "ttf" } else { "fff" };
                    let path = format!("/endpoints/{at}");
                    let value = entry(&pod.0, &pod.1, conditions);
                    let operation = json!([{"op": "replace", "path": path, "value": value}]);
                    change(&api, &format!("s{slice}"), &operation).await;
                    if new {
                        written.send((pod.0.clone(), Instant::now())).expect("someone follows");
                    }
                }
                pods
            })
        });
        let writers: Vec<_> = writers.collect();
        drop(written);
        let pods = writers.into_iter().map(|writer| slices.runtime.block_on(writer));
        let pods: Vec<_> = pods.map(|pods| pods.expect("all is written")).collect();
        (pods, follower.join().expect("all is followed"))
    });
    let (took, cpu) = (start.elapsed(), proxy.process.cpu() - cpu);
    let expected: BTreeMap<_, _> =
        expected.into_iter().flatten().map(|(pod, ip, ready)| (pod, (ip, ready))).collect();
    eventually("the last change is followed", Duration::from_secs(15), || {
        let found = backends(&proxy).into_iter().map(|(pod, (address, state))| {
            let ip = address.trim_start_matches("tcp://").trim_end_matches(":1234").to_owned();
            (pod, (ip, state == "ready"))
        });
        (found.collect::<BTreeMap<_, _>>() == expected).then_some(())
    });
    delays.sort();
    let (median, late) = (delays[delays.len() / 2], delays[delays.len() * 95 / 100]);
    let changes = u64::try_from(SLICES).expect("small") * BURST.as_secs() * RATE;
    println!(
        "{changes} changes of {} endpoints in {took:.1?}: followed within {median:.0?} (median), \
         {late:.0?} (95 %), {:.0?} (all); CPU {cpu:.1?}, at rest {quiet:.1?} in {BURST:?}; \
         memory {} MiB",
        SLICES * ENDPOINTS,
        delays[delays.len() - 1],
        proxy.process.memory_kib("VmHWM") / 1024,
    );
    assert!(late < Duration::from_secs(1), "{late:?}");
}
