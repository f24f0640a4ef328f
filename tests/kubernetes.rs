//! Daemons that a real Kubernetes runs: the proxy finds and follows them, and no build fails when they are replaced.

mod support;

use std::{
    path::Path,
    process::Stdio,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use support::{
    certificates::{Authority, Request},
    client::{Buildx, Context, build, buildctl, buildctl_build, buildctl_tls, run, succeed, text},
    eventually, free_port,
    kubernetes::{
        Cluster,
        fleet::{Fleet, objects, ready},
    },
    proxy::{Builder, Proxy},
};

/// One cluster for the tests that do not restart its API server.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

/// Builds without pause, two at a time, until `stop`. Each build has to succeed. Returns how many did.
fn load(proxy: &Proxy, stop: &AtomicBool) -> u32 {
    let (built, number) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let number = number.fetch_add(1, Ordering::Relaxed);
                    let step = format!("RUN sleep 1; echo {number}");
                    let output = run(&mut buildctl_build(&proxy.addr(), &Context::busybox(&step)));
                    assert!(output.status.success(), "{}", text(&output));
                    built.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    built.into_inner()
}

/// Does `work` while builds run. Returns how many builds succeeded.
fn under_load(proxy: &Proxy, work: impl FnOnce()) -> u32 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let builds = scope.spawn(|| load(proxy, &stop));
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Release);
        let builds = builds.join().expect("no build fails");
        worked.expect("the work is done");
        builds
    })
}

#[test]
fn a_fleet_that_is_scaled_up_and_down_loses_no_build() {
    let cluster = cluster();
    let fleet = Fleet::new(cluster, "scale", "Deployment", 1);
    let proxy = fleet.proxy("least-builds");
    ready(&proxy, 1);
    let scale = |count: u32| {
        let replicas = format!("--replicas={count}");
        fleet.kubectl(cluster, &["scale", "deployment/buildkitd", &replicas]);
        ready(&proxy, count);
    };
    let builds = under_load(&proxy, || {
        scale(3);
        let before = proxy.records("build ended").len();
        eventually("the new pods build", Duration::from_secs(60), || {
            (proxy.records("build ended").len() >= before + 4).then_some(())
        });
        scale(1);
    });
    println!("1 -> 3 -> 1: {builds} builds, none failed");
    assert!(builds > 2);
}

#[test]
fn a_roll_out_of_a_stateful_set_under_load_loses_no_build() {
    let cluster = cluster();
    let fleet = Fleet::new(cluster, "roll-out", "StatefulSet", 3);
    let proxy = fleet.proxy("consistent-hash");
    ready(&proxy, 3);
    let builds = under_load(&proxy, || {
        fleet.kubectl(cluster, &["rollout", "restart", "statefulset/buildkitd"]);
        let status = ["rollout", "status", "statefulset/buildkitd", "--timeout=240s"];
        fleet.kubectl(cluster, &status);
        ready(&proxy, 3);
    });
    println!("roll-out of 3 pods: {builds} builds, none failed");
    assert!(builds > 2);
    let states = proxy.admin("GET", "/status.json").1;
    for pod in ["buildkitd-0", "buildkitd-1", "buildkitd-2"] {
        assert!(states.contains(pod), "{states}");
        let joined = proxy.records("backend joined");
        let joined = joined.iter().filter(|record| record["backend"] == pod).count();
        assert_eq!(joined, 2, "{pod} was not replaced once");
    }
}

/// Installs the chart with these values, and starts the proxy with the chart's configuration, arguments and rights.
/// Only the proxy runs outside the cluster, because the kubelet of the tests has no images. `mounted` has the paths at
/// which the Secrets of the proxy are mounted, each with the directory of the files, and `secrets` the same of the
/// daemons.
fn installed(
    cluster: &Cluster,
    namespace: &str,
    set: &[&str],
    mounted: &[(&str, &Path)],
    secrets: &[(&str, &Path)],
) -> Proxy {
    cluster.namespace(namespace);
    for (name, directory) in secrets {
        cluster.server().make_secret(namespace, name, directory);
    }
    let port = free_port();
    let port_value = format!("buildkitd.podAnnotations.test/admin-port={port}");
    let objects = cluster.install(namespace, set, &["--set-string", &port_value]);
    let kubeconfig = cluster.account(namespace, set);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("buildkit-lb.toml");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let config = objects.iter().find_map(|object| text(&object["data"]["buildkit-lb.toml"]));
    let token = directory.path().join("token");
    let secret = cluster.server().token(namespace, "buildkit-lb-token");
    std::fs::write(&token, secret).expect("written");
    let config = config.expect("a configuration");
    let mut config = config.replace("/run/secrets/buildkit-lb/token", &token.to_string_lossy());
    for (at, directory) in mounted {
        config = config.replace(at, &directory.to_string_lossy());
    }
    std::fs::write(&file, config).expect("written");
    let args = objects.iter().find_map(|object| {
        let container = &object["spec"]["template"]["spec"]["containers"][0];
        let args = container["args"].as_array().filter(|_args| container["name"] == "buildkit-lb");
        args.map(|args| args.iter().filter_map(text).collect::<Vec<_>>())
    });
    let args = args.expect("the proxy's arguments");
    let args: Vec<_> = args[1..].iter().map(|a| a.replace("$(POD_NAMESPACE)", namespace)).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let proxy = Builder::default().args(&["--config", &file.to_string_lossy()]).args(&args);
    proxy.admin(&format!("0.0.0.0:{port}")).kubeconfig(&kubeconfig).start()
}

#[test]
fn what_the_chart_installs_with_tls_on_both_sides_builds_for_who_has_a_certificate() {
    let cluster = cluster();
    let (clients, daemons) = (Authority::new("of clients"), Authority::new("of daemons"));
    let own = clients.directory("proxy", &Request::SERVER);
    let client = clients.directory("client", &Request::CLIENT);
    let to_daemons = daemons.directory("proxy", &Request::CLIENT);
    // The name is the one that the chart's documentation asks for, and no address.
    let service = Request { names: &["buildkitd.secured.svc"], ..Request::SERVER };
    let daemon = daemons.directory("daemon", &service);
    let set = [
        "buildkitd.replicas=1",
        "tls.existingSecret=lb-tls",
        "backendTLS.existingSecret=lb-backend-tls",
        "backendTLS.daemonSecret=daemon-tls",
        "service.type=LoadBalancer",
    ];
    let mounted = [("/run/secrets/tls", &*own), ("/run/secrets/backend-tls", &*to_daemons)];
    let proxy = installed(cluster, "secured", &set, &mounted, &[("daemon-tls", &daemon)]);
    ready(&proxy, 1);
    let context = Context::busybox("RUN echo secured");
    succeed(&mut build(buildctl_tls(&proxy.addr(), &client), &context));
    let mut nobody = buildctl(&proxy.addr());
    let nobody =
        run(nobody.arg("--tlscacert").arg(client.join("ca.pem")).args(["debug", "workers"]));
    assert!(text(&nobody).contains("certificate required"), "{}", text(&nobody));
    // The daemon accepts only clients with a certificate of its authority.
    let status = proxy.status();
    let address = status["backends"][0]["address"].as_str().expect("an address");
    let mut past = buildctl_tls(address, &client);
    let past = run(past.args(["--tlsservername", "buildkitd.secured.svc", "debug", "workers"]));
    assert!(!past.status.success(), "a client got past the proxy: {}", text(&past));
}

/// The whole chart as it is: its objects, rights, configuration, arguments and the hook of its daemons.
#[test]
fn what_the_chart_installs_builds_through_a_roll_out() {
    let cluster = cluster();
    let namespace = "installed";
    let set = ["buildkitd.replicas=3", "pods.details=true", "service.type=ClusterIP"];
    let proxy = installed(cluster, namespace, &set, &[], &[]);
    ready(&proxy, 3);
    let kubectl = |args: &[&str]| {
        cluster.server().kubectl(&[&["--namespace", namespace], args].concat());
    };
    let builds = under_load(&proxy, || {
        kubectl(&["rollout", "restart", "statefulset/buildkitd"]);
        kubectl(&["rollout", "status", "statefulset/buildkitd", "--timeout=240s"]);
        ready(&proxy, 3);
    });
    println!("the chart's own roll-out of 3 pods: {builds} builds, none failed");
    assert!(builds > 2);
    let drained = proxy.metric("buildkit_lb_backend_drains_total", &["result=\"drained\""]);
    assert_eq!(drained, 3.0, "each daemon has asked before it ended");
    let status = proxy.status();
    let backends = status["backends"].as_array().expect("a list");
    assert_eq!(backends.len(), 3);
    // The labels of the pod, and the version that the daemon in it reports.
    for version in ["version", "buildkit_version"] {
        assert!(backends.iter().all(|backend| backend[version] == "v0.32.2"), "{status}");
    }
}

#[test]
fn a_pod_that_terminates_finishes_its_bake() {
    let cluster = cluster();
    let fleet = Fleet::new(cluster, "bake", "StatefulSet", 2);
    let proxy = fleet.proxy("random");
    ready(&proxy, 2);
    let context = Context::busybox("RUN sleep 4\nRUN echo first");
    context.write("Dockerfile.second", "FROM base\nRUN echo second\n");
    let targets = json!({
        "first": {"context": context.path()},
        "second": {
            "context": context.path(), "dockerfile": "Dockerfile.second",
            "contexts": {"base": "target:first"},
        },
    });
    let file = json!({"group": {"default": {"targets": ["first", "second"]}}, "target": targets});
    context.write("bake.json", file.to_string());
    let path = context.path().join("bake.json").to_string_lossy().into_owned();
    let buildx = Buildx::new(&proxy.addr());
    let mut bake = buildx.command(&["bake", "--progress=plain", "--allow=fs=*", "-f", &path]);
    let log = std::fs::File::create(context.path().join("log")).expect("a file");
    let mut bake = bake.stdout(Stdio::null()).stderr(log).spawn().expect("buildx runs");
    let told = || std::fs::read_to_string(context.path().join("log")).unwrap_or_default();
    eventually("the bake's step runs", Duration::from_secs(30), || {
        told().contains("RUN sleep 4").then_some(())
    });
    let pods = ["buildkitd-0", "buildkitd-1"];
    let active = |pod: &&str| {
        proxy.metric("buildkit_lb_builds_active", &[&format!("backend=\"{pod}\"")]) > 0.0
    };
    let pod = pods.into_iter().find(active).expect("a daemon has the bake");
    fleet.kubectl(cluster, &["delete", "pod", pod, "--wait=false"]);
    eventually("the backend drains", Duration::from_secs(10), || {
        let draining = proxy.metric("buildkit_lb_backend_state", &["state=\"draining\""]);
        (draining == 1.0).then_some(())
    });
    let status = bake.wait().expect("buildx ends");
    assert!(status.success() && told().contains("second"), "{}", told());
    // The next pod of the same name is a new daemon.
    ready(&proxy, 2);
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo next")));
}

#[test]
fn without_the_api_server_the_last_fleet_builds_on() {
    let mut cluster = Cluster::start();
    let fleet = Fleet::new(&cluster, "away", "StatefulSet", 1);
    let proxy = fleet.proxy("random");
    ready(&proxy, 1);
    let builds = under_load(&proxy, || {
        cluster.kill_apiserver();
        eventually("discovery fails", Duration::from_secs(20), || {
            let (code, told) = proxy.admin("GET", "/readyz");
            assert_eq!(code, 200, "{told}");
            told.contains("since").then_some(())
        });
        succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo alone")));
        cluster.start_apiserver();
        eventually("discovery recovers", Duration::from_secs(30), || {
            (!proxy.admin("GET", "/readyz").1.contains("since")).then_some(())
        });
        fleet.kubectl(&cluster, &["scale", "statefulset/buildkitd", "--replicas=2"]);
        ready(&proxy, 2);
    });
    println!("API server killed and restarted: {builds} builds, none failed");
    assert!(builds > 2);
}

#[test]
fn missing_rights_are_named_once_with_verb_and_resource() {
    let cluster = cluster();
    cluster.namespace("no-rights");
    let kubeconfig = cluster.account("no-rights", &["rbac.create=false"]);
    let proxy = Builder::default().discover("no-rights/buildkitd", &kubeconfig).start();
    let failed = || proxy.records("discovery failed, the fleet stays as it is");
    eventually("the error is told", Duration::from_secs(20), || {
        // The proxy has tried more than once by then.
        let tries = proxy.metric("buildkit_lb_discovery_errors_total", &["forbidden"]);
        (tries >= 3.0).then_some(())
    });
    let records = failed();
    assert_eq!(records.len(), 1, "{records:?}");
    let error = records[0]["error"].as_str().expect("a text").to_owned();
    for part in ["list", "endpointslices.discovery.k8s.io", "namespace no-rights"] {
        assert!(error.contains(part), "{part} is missing in: {error}");
    }
    assert_eq!(proxy.admin("GET", "/readyz").0, 503);
}

#[test]
fn a_service_that_does_not_exist_is_waited_for() {
    let cluster = cluster();
    cluster.namespace("later");
    let kubeconfig = cluster.account("later", &[]);
    let proxy = Builder::default().discover("later/buildkitd", &kubeconfig).start();
    let cause = eventually("it says so", Duration::from_secs(20), || {
        let record = proxy.records("discovery found no endpoints").pop()?;
        record["cause"].as_str().map(str::to_owned)
    });
    assert!(cause.contains("later") && cause.contains("buildkitd"), "{cause}");
    cluster.server().apply(&objects("later", "Deployment", 1, "127.0.0.1:1"));
    ready(&proxy, 1);
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo found")));
}

#[test]
fn each_service_is_the_pool_of_its_own_address() {
    let cluster = cluster();
    cluster.namespace("pool-b");
    let pool = |key: &str, value: &str| format!("pools[0].{key}={value}");
    let values = [
        pool("name", "b"),
        pool("port", "1235"),
        pool("discover[0].namespace", "pool-b"),
        pool("discover[0].name", "buildkitd"),
    ];
    let values: Vec<_> = values.iter().map(String::as_str).collect();
    let fleet = Fleet::with(cluster, "pool-a", "StatefulSet", 1, &values);
    fleet.beside(cluster, "pool-b", "StatefulSet", 1);
    let pool = |name: &str| {
        format!(
            "[[pool]]\nname = '{name}'\nlisten = 'tcp://127.0.0.1:0'\nmax-wait = '0s'\n\
             discover = 'kubernetes://pool-{name}/buildkitd'\n"
        )
    };
    let proxy = fleet.proxy_of(&[pool("a"), pool("b")].concat());
    ready(&proxy, 2);
    let context = Context::busybox("RUN true");
    for (name, count) in [("a", 1), ("b", 2)] {
        // The pods have the same name, but are two daemons.
        for _ in 0..count {
            succeed(&mut buildctl_build(&proxy.addr_of(name), &context));
        }
        let pool = format!("pool=\"{name}\"");
        let built = proxy.metric("buildkit_lb_builds_total", &[&pool, "backend=\"buildkitd-0\""]);
        assert_eq!(built, f64::from(count), "{name}");
    }
    // The pod of one pool ends. The other pool's pod of the same name stays in use.
    let pods = ["-n", "pool-b", "scale", "statefulset/buildkitd", "--replicas=0"];
    cluster.server().kubectl(&pods);
    ready(&proxy, 1);
    succeed(&mut buildctl_build(&proxy.addr_of("a"), &context));
    let refused = run(&mut buildctl_build(&proxy.addr_of("b"), &context));
    assert!(text(&refused).contains("Unavailable"), "{}", text(&refused));
    let (code, told) = proxy.admin("GET", "/readyz");
    assert!(code == 200 && told.contains("pool b: no backend is ready"), "{told}");
}
