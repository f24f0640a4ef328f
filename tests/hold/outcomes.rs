//! A build that has waited ends like a build that has not, with further kinds of clients.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use serde_json::{Map, json};

use crate::{
    clients::{
        BUILT, STEP, TOLD_TWICE, builds, built, context, start, succeeds, until_it_shows,
        with_output, without_daemon,
    },
    support::{
        buildkitd::Buildkitd,
        child::Guarded,
        client::{Buildx, Context, build, buildctl, buildctl_build, run, succeed},
        compare::Outcome,
        proxy::Proxy,
        tools::tool,
    },
};

/// The output of `client` and how it ended, once it has ended.
fn ended(client: &mut Guarded) -> Output {
    let status = client.wait(BUILT);
    Output { status, stdout: client.log().into_bytes(), stderr: Vec::new() }
}

#[test]
fn a_wait_changes_nothing_but_for_the_step_that_shows_it() {
    let (mut daemon, proxy) = without_daemon();
    let contexts = [context(), Context::busybox("RUN echo said before; exit 3")];
    let mut waiting = contexts.each_ref().map(|one| start(&buildctl_build(&proxy.addr(), one)));
    waiting.iter().for_each(|client| until_it_shows(client, STEP, 1, TOLD_TWICE));
    daemon.restart();
    for (context, client) in contexts.iter().zip(&mut waiting) {
        let waited = Outcome::of(&ended(client));
        let direct = Outcome::of(&run(&mut buildctl_build(&daemon.addr(), context)));
        assert!(waited.has_step("waiting for a builder"), "{waited:?}");
        assert_eq!(waited.without_step("waiting for a builder"), direct);
    }
}

/// Serves `text` at this address to every client, until the test ends.
fn serve(text: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            let request = lines.next().and_then(Result::ok).unwrap_or_default();
            // The rest of the head, up to an empty line.
            lines
                .take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
                .for_each(drop);
            let body = if request.starts_with("HEAD") { "" } else { text };
            let len = text.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    format!("http://{address}/Dockerfile")
}

/// A build whose context is at `url`.
fn build_of_url(addr: &str, url: &str) -> Command {
    let mut command = buildctl(addr);
    command.args(["build", "--progress=plain", "--frontend=dockerfile.v0", "--opt"]);
    command.arg(format!("context={url}"));
    command
}

/// `buildctl` with its own way of waiting for a daemon.
fn build_with_wait(addr: &str, context: &Context) -> Command {
    let mut command = buildctl(addr);
    command.arg("--wait");
    build(command, context)
}

/// The oldest client that is tested.
fn build_by_old_client(addr: &str, context: &Context) -> Command {
    let mut command = Command::new(tool("old-buildctl"));
    command.args(["--addr", addr]).env_remove("TRACEPARENT").env("DOCKER_CONFIG", "/nonexistent");
    build(command, context)
}

/// A program with BuildKit's Go client. It sends no Ping, and writes a tar file to `output`.
fn build_by_go_program(addr: &str, context: &Context, output: &Path) -> Command {
    let mut command = Command::new(tool("solve-client"));
    command.arg(addr).args([context.path(), output]).env_remove("TRACEPARENT");
    command
}

#[test]
fn a_go_program_that_never_pings_waits_and_builds() {
    let (mut daemon, proxy) = without_daemon();
    let outputs = tempfile::tempdir().expect("a directory");
    let output = outputs.path().join("image.tar");
    let context = context();
    let mut client = start(&build_by_go_program(&proxy.addr(), &context, &output));
    until_it_shows(&client, "in the queue of pool default", 2, TOLD_TWICE);
    daemon.restart();
    succeeds(&mut client);
    assert!(client.log().contains("[internal] waiting for a builder"), "{}", client.log());
    let tar = std::fs::read(output).expect("a tar file");
    assert!(String::from_utf8_lossy(&tar).contains("waited\n"), "the result is whole");
    assert_eq!(builds(&daemon), 1);
    let pings = proxy.metric("grpc_server_started_total", &["grpc_method=\"Ping\""]);
    assert_eq!(pings, 0.0);
}

#[test]
fn further_kinds_of_clients_wait_and_build_as_ever() {
    let (mut daemon, proxy) = without_daemon();
    let (addr, context) = (proxy.addr(), context());
    let url = serve("FROM scratch\nCOPY <<END /waited\nwaited\nEND\n");
    let outputs = tempfile::tempdir().expect("a directory");
    let output = |name: &str| outputs.path().join(name);
    let kinds = [
        ("url", build_of_url(&addr, &url)),
        ("wait", build_with_wait(&addr, &context)),
        ("old", build_by_old_client(&addr, &context)),
    ];
    let mut waiting: Vec<_> = kinds
        .into_iter()
        .map(|(name, command)| (name, start(&with_output(command, &output(name)))))
        .collect();
    for (_name, client) in &waiting {
        until_it_shows(client, "in the queue of pool default", 2, TOLD_TWICE);
    }
    daemon.restart();
    for (name, client) in &mut waiting {
        succeeds(client);
        assert_eq!(built(&output(name)), "waited\n", "{name}");
    }
    assert_eq!(builds(&daemon), 3);
}

/// A file for `buildx bake` with so many targets, each of which builds something else.
fn bake_file(context: &Path, targets: usize) -> String {
    let mut all = Map::new();
    for number in 0..targets {
        let args = json!({ "NUMBER": number.to_string() });
        let target = json!({ "context": context, "args": args, "output": ["type=cacheonly"] });
        all.insert(format!("t{number}"), target);
    }
    let names: Vec<_> = all.keys().cloned().collect();
    json!({ "group": { "default": { "targets": names } }, "target": all }).to_string()
}

#[test]
fn a_bake_of_forty_targets_runs_on_a_daemon_of_four_slots() {
    let daemon = Buildkitd::start("only");
    let proxy = Proxy::in_front_of([&daemon]).args(&["--max-builds", "4"]).start();
    proxy.wait_ready(1, BUILT);
    let context = Context::new("FROM scratch\nARG NUMBER\nCOPY Dockerfile /number-$NUMBER\n");
    context.write("bake.json", bake_file(context.path(), 40));
    let file = context.path().join("bake.json").display().to_string();
    let files = format!("--allow=fs.read={}", context.path().display());
    let buildx = Buildx::new(&proxy.addr());
    succeed(&mut buildx.command(&["bake", "--progress=plain", &files, "-f", &file]));
    assert_eq!(builds(&daemon), 40);
}
