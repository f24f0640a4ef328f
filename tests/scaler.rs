//! A client generated from KEDA's own protocol definition asks the external scaler.

mod support;

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    child::Guarded,
    client::{Context, buildctl, buildctl_build, run, succeed, text},
    eventually, free_port,
    kubernetes::{
        Cluster,
        fleet::{Fleet, ready},
        unreachable_kubeconfig,
    },
    proxy::{Builder, Proxy},
    raw_client::RawClient,
    tools::tool,
};

const ARGS: [&str; 2] = ["--scaler-listen", "127.0.0.1:0"];

/// The address for KEDA.
fn scaler(proxy: &Proxy) -> String {
    eventually("the scaler listens", Duration::from_secs(10), || {
        let records = proxy.records("listening");
        let record = records.into_iter().find(|record| record["port_name"] == "scaler")?;
        record["address"].as_str().map(str::to_owned)
    })
}

/// Asks one question, with the metadata of a trigger.
fn ask(proxy: &Proxy, question: &str, metadata: &[&str]) -> Output {
    let mut client = Command::new(tool("keda-client"));
    client.args([scaler(proxy).as_str(), question]).args(metadata);
    run(&mut client)
}

/// The answer to one question.
fn answer(proxy: &Proxy, question: &str, metadata: &[&str]) -> Value {
    let output = ask(proxy, question, metadata);
    assert!(output.status.success(), "{question}: {}", text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The name of the gRPC status that a question ends with.
fn refusal(proxy: &Proxy, question: &str, metadata: &[&str]) -> String {
    let output = ask(proxy, question, metadata);
    assert!(!output.status.success(), "{question}: {}", text(&output));
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// A stream of answers.
struct Answers(Guarded);

impl Answers {
    fn open(proxy: &Proxy, metadata: &[&str]) -> Self {
        let addr = scaler(proxy);
        let args = [&[addr.as_str(), "stream"], metadata].concat();
        Self(Guarded::start(&tool("keda-client"), &args))
    }

    /// All values so far, `true` or `false`.
    fn told(&self) -> Vec<bool> {
        let log = self.0.log();
        let answers = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        // Go omits a field that is false.
        answers.map(|answer| answer["result"].as_bool().unwrap_or_default()).collect()
    }

    fn wait_for(&self, answers: &[bool]) {
        eventually(&format!("{answers:?} is told"), Duration::from_secs(30), || {
            (self.told() == answers).then_some(())
        });
    }
}

#[test]
fn keda_is_told_of_builds_and_of_a_client_that_is_about_to_build() {
    let fleet = Buildkitd::fleet(1);
    let mut proxy = Proxy::in_front_of(&fleet).args(&ARGS).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let spec = answer(&proxy, "spec", &["buildsPerDaemon=7"]);
    let spec = &spec["metricSpecs"][0];
    assert_eq!(spec["metricName"], "builds");
    assert_eq!((&spec["targetSize"], &spec["targetSizeFloat"]), (&7.into(), &7.into()));
    let spec = answer(&proxy, "spec", &[]);
    assert_eq!(spec["metricSpecs"][0]["targetSize"], 4);
    assert_eq!(answer(&proxy, "is-active", &[])["result"], Value::Null);
    let mut answers = Answers::open(&proxy, &[]);
    answers.wait_for(&[false]);

    // The first call of a build's client.
    succeed(buildctl(&proxy.addr()).args(["debug", "workers"]));
    answers.wait_for(&[false, true]);
    assert_eq!(answer(&proxy, "is-active", &[])["result"], true);
    assert_eq!(answer(&proxy, "metrics", &[])["metricValues"][0]["metricValue"], Value::Null);

    let context = Context::busybox("RUN until [ -e /tmp/never ]; do sleep 1; done");
    let mut build = buildctl_build(&proxy.addr(), &context).spawn().expect("buildctl runs");
    eventually("the build is told", Duration::from_secs(30), || {
        let value = &answer(&proxy, "metrics", &["buildsPerDaemon=1"])["metricValues"][0];
        let both = (&value["metricValue"], &value["metricValueFloat"]);
        (both == (&1.into(), &1.into())).then_some(())
    });
    build.kill().expect("it runs");
    build.wait().expect("it ends");

    // During a drain the stream ends with OK, so that KEDA asks another proxy.
    proxy.process.signal("TERM");
    let status = answers.0.wait(Duration::from_secs(20));
    assert!(status.success(), "{}", answers.0.log());
    assert!(proxy.process.wait(Duration::from_secs(60)).success());
}

#[test]
fn what_cannot_be_answered_is_refused_in_words() {
    let fleet = Buildkitd::fleet(1);
    let pool = |name: &str| {
        let daemon = fleet[0].backend();
        format!("[[pool]]\nname = '{name}'\nlisten = 'tcp://127.0.0.1:0'\nbackend = '{daemon}'\n")
    };
    let file = format!("scaler-listen = '127.0.0.1:0'\n{}{}", pool("amd64"), pool("arm64"));
    let proxy = Builder::default().file(&file).start();
    let unknown = refusal(&proxy, "is-active", &["pool=riscv"]);
    assert_eq!(unknown, "InvalidArgument: pool: no pool has this name; there are: amd64, arm64");
    assert!(refusal(&proxy, "spec", &[]).starts_with("InvalidArgument: pool is needed"));
    let target = refusal(&proxy, "spec", &["pool=arm64", "buildsPerDaemon=0"]);
    assert!(target.starts_with("InvalidArgument: buildsPerDaemon"), "{target}");
    assert!(refusal(&proxy, "stream-spec", &["pool=arm64"]).starts_with("Unimplemented"));
    // Each pool has its own builds.
    succeed(buildctl(&proxy.addr_of("arm64")).args(["debug", "workers"]));
    assert_eq!(answer(&proxy, "is-active", &["pool=arm64"])["result"], true);
    assert_eq!(answer(&proxy, "is-active", &["pool=amd64"])["result"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn keda_is_told_again_while_builds_wait() {
    let port = free_port();
    let builder = Builder::default().backend(&format!("late=tcp://127.0.0.1:{port}"));
    let proxy = builder.args(&ARGS).start();
    let client = RawClient::connect(&proxy.socket()).await;
    let _waiting = client.solve("r", "s").await;
    eventually("the build waits", Duration::from_secs(20), || {
        (proxy.metric("buildkit_lb_queue_depth", &[]) == 1.0).then_some(())
    });
    let answers = Answers::open(&proxy, &[]);
    eventually("the same is told twice", Duration::from_secs(120), || {
        let told = answers.told();
        assert!(told.iter().all(|active| *active), "{told:?}");
        (told.len() >= 2).then_some(())
    });
}

#[test]
fn a_proxy_that_does_not_know_its_daemons_does_not_say_that_they_are_idle() {
    let nowhere = unreachable_kubeconfig();
    let proxy = Builder::default().args(&ARGS).discover("n/s", nowhere.path()).start();
    for question in ["is-active", "stream", "metrics"] {
        let told = refusal(&proxy, question, &[]);
        assert_eq!(told, "Unavailable: the daemons of the pool are not known yet", "{question}");
    }
}

#[test]
fn keda_shows_a_certificate_where_the_scaler_asks_for_one() {
    let authority = Authority::new("scaler");
    let server = authority.directory("server", &Request::SERVER);
    let own = authority.directory("keda", &Request::CLIENT);
    let fleet = Buildkitd::fleet(1);
    let path = |directory: &Path, file: &str| directory.join(file).display().to_string();
    let directory = server.display().to_string();
    let proxy = Proxy::in_front_of(&fleet).args(&ARGS).args(&["--scaler-tls-dir", &directory]);
    let proxy = proxy.start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let ask = |args: &[&str]| {
        let mut client = Command::new(tool("keda-client"));
        run(client.args(args).args([&scaler(&proxy), "is-active"]))
    };
    let (ca, cert, key) = (path(&own, "ca.crt"), path(&own, "tls.crt"), path(&own, "tls.key"));
    let output = ask(&["-ca", &ca, "-cert", &cert, "-key", &key]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(!ask(&["-ca", &ca]).status.success());
    assert!(!ask(&[]).status.success());
}

/// Raises a Deployment without daemons as KEDA would by the answers of the scaler. The new daemon then builds what has
/// waited.
#[test]
fn a_build_wakes_a_fleet_of_no_daemon() {
    let cluster = Cluster::start();
    let fleet = Fleet::new(&cluster, "zero", "Deployment", 0);
    let proxy = fleet.proxy_with("least-builds", &ARGS);
    eventually("the fleet is known", Duration::from_secs(60), || {
        ask(&proxy, "is-active", &[]).status.success().then_some(())
    });
    let answers = Answers::open(&proxy, &[]);
    answers.wait_for(&[false]);
    let context = Context::busybox("RUN echo woken");
    let output = std::thread::scope(|scope| {
        let build = scope.spawn(|| run(&mut buildctl_build(&proxy.addr(), &context)));
        answers.wait_for(&[false, true]);
        fleet.kubectl(&cluster, &["scale", "deployment/buildkitd", "--replicas=1"]);
        build.join().expect("no panic")
    });
    assert!(output.status.success(), "{}", text(&output));
    ready(&proxy, 1);
}
