//! Real clients of every kind wait for a daemon, and then build as they do without a wait.

use std::{path::Path, process::Command, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    buildkitd::Buildkitd,
    child::Guarded,
    client::{Buildx, Context, buildctl_build, succeed},
    eventually,
    proxy::Proxy,
    tools::tool,
};

/// The name of the step that shows the wait.
pub(crate) const STEP: &str = "[internal] waiting for a builder";

/// The text that the step shows.
pub(crate) const LINE: &str = "1st in the queue of pool default; no backend is ready";

/// The time after which a client has certainly been told twice that it waits. The second time comes after half a
/// minute. By then every limit of the clients has passed; the longest limit is 15 s.
pub(crate) const TOLD_TWICE: Duration = Duration::from_secs(90);

/// The longest time for a build once the build has a daemon.
pub(crate) const BUILT: Duration = Duration::from_secs(90);

/// A proxy whose daemon has stopped. The proxy has learned before what the daemon can do.
pub(crate) fn without_daemon() -> (Buildkitd, Proxy) {
    let (mut daemon, proxy) = with_known_daemon();
    daemon.kill();
    eventually("it is missed", Duration::from_secs(60), || {
        (proxy.metric("buildkit_lb_backend_state", &["state=\"ready\""]) == 0.0).then_some(())
    });
    (daemon, proxy)
}

/// A proxy that has learned what its daemon can do.
fn with_known_daemon() -> (Buildkitd, Proxy) {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    let learnt = "capabilities of a version learnt";
    eventually("the daemon is known", Duration::from_secs(60), || proxy.records(learnt).pop());
    (daemon, proxy)
}

/// Starts a client whose build has to wait.
pub(crate) fn start(command: &Command) -> Guarded {
    let mut args = Vec::new();
    for (name, value) in command.get_envs() {
        let name = name.to_str().expect("UTF-8");
        args.push(match value {
            Some(value) => format!("{name}={}", value.to_str().expect("UTF-8")),
            None => format!("--unset={name}"),
        });
    }
    // env takes its options before the variables.
    args.sort_by_key(|arg| !arg.starts_with("--"));
    args.push(command.get_program().to_str().expect("UTF-8").to_owned());
    args.extend(command.get_args().map(|arg| arg.to_str().expect("UTF-8").to_owned()));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    Guarded::start(&tool("env"), &args)
}

/// How often `text` occurs in the output of `client`.
pub(crate) fn printed(client: &Guarded, text: &str) -> usize {
    client.log().matches(text).count()
}

pub(crate) fn until_it_shows(client: &Guarded, text: &str, times: usize, limit: Duration) {
    eventually(&format!("{text} is shown"), limit, || {
        (printed(client, text) >= times).then_some(())
    });
}

pub(crate) fn succeeds(client: &mut Guarded) {
    let status = client.wait(BUILT);
    assert!(status.success(), "{status}: {}", client.log());
}

/// The image that a client of `addr` gets for `context`.
pub(crate) fn with_output(mut command: Command, file: &Path) -> Command {
    command.arg("--output").arg(format!("type=local,dest={}", file.display()));
    command
}

/// The client on a terminal, as a person uses it.
fn on_a_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| format!("'{}'", word.to_str().expect("UTF-8"))).collect();
    let mut terminal = Command::new(tool("script"));
    terminal.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]);
    terminal
}

/// The files that a build with [`context`] writes.
pub(crate) fn built(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("waited")).expect("built")
}

/// The builds that `daemon` has a record of.
pub(crate) fn builds(daemon: &Buildkitd) -> usize {
    let histories = daemon.histories();
    eprintln!("{histories}");
    // The first line has the names of the columns.
    histories.lines().skip(1).count()
}

pub(crate) fn context() -> Context {
    Context::busybox("RUN echo waited > /waited")
}

#[test]
fn clients_wait_longer_than_each_of_their_limits_and_build_as_ever() {
    let (mut daemon, proxy) = without_daemon();
    let addr = proxy.addr();
    let context = context();
    let outputs = tempfile::tempdir().expect("a directory");
    let output = |name: &str| outputs.path().join(name);
    let build = |name: &str, progress: &str| {
        let mut command = with_output(buildctl_build(&addr, &context), &output(name));
        command.args(["--progress", progress]);
        command
    };
    let terminal = on_a_terminal(&build("tty", "tty"));
    let mut plain = start(&build("plain", "plain"));
    // The others come after it, so its position does not change.
    until_it_shows(&plain, LINE, 1, TOLD_TWICE);
    let mut others = [start(&build("raw", "rawjson")), start(&terminal)];
    until_it_shows(&plain, LINE, 2, TOLD_TWICE);
    for client in &others {
        until_it_shows(client, STEP, 1, TOLD_TWICE);
    }
    daemon.restart();
    succeeds(&mut plain);
    others.iter_mut().for_each(succeeds);
    for name in ["plain", "raw", "tty"] {
        assert_eq!(built(&output(name)), "waited\n");
    }
    let log = plain.log();
    assert!(!log.contains("CACHED [internal]") && !log.contains("ERROR"), "{log}");
    assert!(log.contains("#1 DONE"), "the step completes: {log}");
    // The daemon keeps the same of these builds as of any other build.
    assert_eq!(builds(&daemon), 3);
}

#[test]
fn buildx_waits_for_a_build_and_for_a_bake() {
    let (mut daemon, proxy) = without_daemon();
    let buildx = Buildx::new(&proxy.addr());
    let context = context();
    let path = context.path().display().to_string();
    let metadata = buildx.file("meta.json").display().to_string();
    let output = buildx.file("output");
    let output_flag = format!("type=local,dest={}", output.display());
    let build = buildx.command(&[
        "build",
        "--progress=plain",
        "--metadata-file",
        &metadata,
        "-o",
        &output_flag,
        &path,
    ]);
    let target = json!({ "context": path, "output": ["type=cacheonly"] });
    let targets = json!({ "a": target, "b": target, "c": target });
    let file = json!({ "group": { "default": { "targets": ["a", "b", "c"] } }, "target": targets });
    context.write("bake.json", file.to_string());
    let bake_file = context.path().join("bake.json").display().to_string();
    let files = format!("--allow=fs.read={path}");
    let bake = buildx.command(&["bake", "--progress=plain", &files, "-f", &bake_file]);
    let (mut build, mut bake) = (start(&build), start(&bake));
    until_it_shows(&build, "in the queue of pool default", 2, TOLD_TWICE);
    until_it_shows(&bake, "in the queue of pool default", 2, TOLD_TWICE);
    let mut inspect = start(&buildx.command(&["inspect", "--bootstrap"]));
    succeeds(&mut inspect);
    daemon.restart();
    succeeds(&mut build);
    succeeds(&mut bake);
    assert_eq!(built(&output), "waited\n");
    let metadata = std::fs::read_to_string(metadata).expect("a metadata file");
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    assert!(metadata["buildx.build.ref"].is_string(), "{metadata}");
    assert!(metadata["buildx.build.provenance"].is_object(), "{metadata}");
}

#[test]
fn the_first_start_from_nothing_keeps_its_clients() {
    let mut daemon = Buildkitd::absent("only");
    let proxy = Proxy::in_front_of([&daemon]).start();
    let context = context();
    let outputs = tempfile::tempdir().expect("a directory");
    let output = outputs.path().join("first");
    let mut build = start(&with_output(buildctl_build(&proxy.addr(), &context), &output));
    let waits = || proxy.metric("buildkit_lb_parked_streams", &[]) >= 1.0;
    eventually("it asks for workers", BUILT, || waits().then_some(()));
    daemon.restart();
    succeeds(&mut build);
    assert_eq!(built(&output), "waited\n");
}

#[test]
fn the_last_daemon_leaves_at_the_moment_when_clients_come() {
    let (mut daemon, proxy) = with_known_daemon();
    daemon.kill();
    // The proxy still takes the daemon for ready.
    let context = context();
    let mut clients: Vec<_> =
        (0..3).map(|_| start(&buildctl_build(&proxy.addr(), &context))).collect();
    for client in &clients {
        until_it_shows(client, STEP, 1, TOLD_TWICE);
    }
    daemon.restart();
    clients.iter_mut().for_each(succeeds);
}

#[test]
fn a_person_who_gives_up_is_let_go_at_once_and_no_daemon_hears_of_it() {
    let (mut daemon, proxy) = without_daemon();
    let context = context();
    let mut build = start(&buildctl_build(&proxy.addr(), &context));
    until_it_shows(&build, LINE, 1, TOLD_TWICE);
    build.signal("INT");
    // Without a hold, a client gives up the Status of a build that has ended after 5 s.
    let status = build.wait(Duration::from_secs(4));
    assert!(!status.success());
    assert!(build.log().contains("canceled"), "{}", build.log());
    for gauge in ["buildkit_lb_parked_streams", "buildkit_lb_queue_depth"] {
        eventually(&format!("{gauge} is 0"), BUILT, || {
            (proxy.metric(gauge, &[]) == 0.0).then_some(())
        });
    }
    daemon.restart();
    succeed(&mut buildctl_build(&proxy.addr(), &context));
    assert_eq!(builds(&daemon), 1);
}
