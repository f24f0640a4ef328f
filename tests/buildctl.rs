//! buildctl works through the proxy as it does at one daemon: same exit code, text and artefacts.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use support::{
    buildkitd::Buildkitd,
    client::{Context, buildctl, buildctl_build, is_running, run, succeed, text},
    compare::{same, same_success},
    eventually,
    proxy::Proxy,
    registry::Registry,
    tools::{shell, tool},
};

/// Three daemons behind a proxy that chooses at random, and one more daemon to compare with.
#[derive(Debug)]
struct Setup {
    direct: Buildkitd,
    fleet: Vec<Buildkitd>,
    proxy: Proxy,
}

fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| {
        let mut fleet = Buildkitd::fleet(4);
        let direct = fleet.remove(0);
        let proxy = Proxy::in_front_of(&fleet).policy("random").start();
        Setup { direct, fleet, proxy }
    })
}

/// The exports of both runs: first that of the direct run, then that of the run through the proxy.
fn exports(context: &Context, output: &str, args: &[&str]) -> [tempfile::TempDir; 2] {
    let setup = setup();
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    same_success(&setup.direct.addr(), &setup.proxy.addr(), |addr| {
        let side = usize::from(addr != setup.direct.addr());
        let mut build = buildctl_build(addr, context);
        let output = output.replace("DIR", &directories[side].path().to_string_lossy());
        build.args(["--output", &output, "--opt", "build-arg:SOURCE_DATE_EPOCH=1700000000"]);
        build.args(args);
        build
    });
    directories
}

fn files(directory: &Path) -> String {
    let list = "find . -type f -printf '%p %m ' -exec sha256sum {} ; | sed 's/  .*//' | sort";
    let list = list.replace("{} ;", "{} \\;");
    succeed(shell(&list, &[]).current_dir(directory))
}

#[test]
fn a_local_export_is_the_same() {
    let context = Context::busybox("RUN echo made > /made && mkdir /d && echo x > /d/x");
    let [direct, proxied] = exports(&context, "type=local,dest=DIR", &[]);
    assert_eq!(files(direct.path()), files(proxied.path()));
    assert!(proxied.path().join("d/x").exists());
}

#[test]
fn a_tar_export_is_the_same() {
    let context = Context::busybox("RUN echo tar > /tar");
    let [direct, proxied] = exports(&context, "type=tar,dest=DIR/out.tar", &[]);
    for directory in [&direct, &proxied] {
        succeed(Command::new(tool("tar")).args(["xf", "out.tar"]).current_dir(directory.path()));
        fs::remove_file(directory.path().join("out.tar")).expect("there");
    }
    assert_eq!(files(direct.path()), files(proxied.path()));
}

#[test]
fn an_oci_export_is_the_same_image() {
    let context = Context::busybox("RUN echo oci > /oci");
    let output = "type=oci,dest=DIR/out.tar,rewrite-timestamp=true,name=example.test/oci:1";
    let [direct, proxied] = exports(&context, output, &[]);
    let blobs = |directory: &Path| {
        succeed(Command::new(tool("tar")).args(["tf", "out.tar"]).current_dir(directory))
    };
    assert_eq!(blobs(direct.path()), blobs(proxied.path()), "blobs are named by their content");
}

#[test]
fn an_image_build_ends_alike() {
    let context = Context::busybox("RUN echo image > /image");
    let [_direct, _proxied] = exports(&context, "type=image,name=example.test/image:1", &[]);
}

#[test]
fn a_git_context_is_fetched() {
    let setup = setup();
    let site = tempfile::tempdir().expect("a directory");
    let script = "git init -q -b main src && cd src && \
        printf 'FROM scratch\\nCOPY hello /hello\\n' > Dockerfile && echo hello > hello && \
        git add . && git -c user.name=t -c user.email=t@example.test commit -qm one && \
        cd .. && git clone -q --bare src app.git && cd app.git && git update-server-info";
    succeed(shell(script, &["git"]).current_dir(site.path()));
    let port = serve_files(site.path());
    let url = format!("http://127.0.0.1:{port}/app.git#main");
    let directories = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    same_success(&setup.direct.addr(), &setup.proxy.addr(), |addr| {
        let side = usize::from(addr != setup.direct.addr());
        let mut build = buildctl(addr);
        build.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]);
        build.args(["--opt", &format!("context={url}")]);
        let dest = format!("type=local,dest={}", directories[side].path().display());
        build.args(["--output", &dest]);
        build
    });
    assert_eq!(files(directories[0].path()), files(directories[1].path()));
    let ended = setup.proxy.records("build ended");
    assert!(
        ended.iter().any(|record| record["key_source"] == "context"),
        "the key is the repository"
    );
}

/// A web server for static files, which suffices for git's dumb protocol.
fn serve_files(root: &Path) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let root = root.to_owned();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let path = request.split(' ').nth(1).unwrap_or("/");
            let path = path.split('?').next().unwrap_or("/").trim_start_matches('/');
            let (status, body) = match fs::read(root.join(path)) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            // A client that has hung up needs no answer.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    port
}

#[test]
fn ten_mebibytes_of_llb_on_standard_input_are_built() {
    let setup = setup();
    // A file operation that makes one file of ten MiB, so its LLB in protobuf has that size.
    let content = vec![b'x'; 10 << 20];
    let llb = llb_with_file("/big", &content);
    let outputs = [&setup.direct.addr(), &setup.proxy.addr()].map(|addr| {
        let out = tempfile::tempdir().expect("a directory");
        let mut build = buildctl(addr);
        build.args(["build", "--progress=plain", "--output"]);
        build.arg(format!("type=local,dest={}", out.path().display()));
        let mut child = build
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("buildctl runs");
        child.stdin.take().expect("piped").write_all(&llb).expect("written");
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success(), "{}", text(&output));
        files(out.path())
    });
    assert_eq!(outputs[0], outputs[1]);
}

/// A pb.Definition (BuildKit solver/pb/ops.proto) of scratch plus one file.
fn llb_with_file(path: &str, content: &[u8]) -> Vec<u8> {
    fn varint(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
    fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        varint(field << 3 | 2, &mut out);
        varint(value.len() as u64, &mut out);
        out.extend_from_slice(value);
        out
    }
    fn number(field: u64, value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(field << 3, &mut out);
        varint(value, &mut out);
        out
    }
    // FileActionMkFile{path=1, mode=2, data=3, timestamp=5}
    let mkfile =
        [bytes(1, path.as_bytes()), number(2, 0o644), bytes(3, content), number(5, 1)].concat();
    // FileAction{input=1, secondaryInput=2, output=3, mkfile=5}; -1 is no input
    let none = u64::MAX;
    let action = [number(1, none), number(2, none), number(3, 0), bytes(5, &mkfile)].concat();
    // Op{file=4{actions=2}}
    let file = bytes(4, &bytes(2, &action));
    let digest = {
        let mut child = Command::new(tool("sha256sum"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sha256sum runs");
        child.stdin.take().expect("piped").write_all(&file).expect("written");
        let output = child.wait_with_output().expect("ends");
        format!("sha256:{}", &String::from_utf8_lossy(&output.stdout)[..64])
    };
    // The result: Op{inputs=1{digest=1, index=2}}
    let input = [bytes(1, digest.as_bytes()), number(2, 0)].concat();
    [bytes(1, &file), bytes(1, &bytes(1, &input))].concat()
}

#[test]
fn secrets_and_ssh_are_forwarded() {
    let setup = setup();
    let context = Context::busybox(
        "RUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = hidden\n\
         RUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\"",
    );
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("key");
    succeed(
        Command::new(tool("ssh-keygen")).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key),
    );
    context.write("token", "hidden");
    let secret = format!("id=token,src={}/token", context.path().display());
    let ssh = format!("default={}", key.display());
    same_success(&setup.direct.addr(), &setup.proxy.addr(), |addr| {
        let mut build = buildctl_build(addr, &context);
        build.args(["--secret", &secret, "--ssh", &ssh, "--no-cache"]);
        build
    });
}

#[test]
fn an_image_is_pushed_with_the_clients_password() {
    let setup = setup();
    let registry = Registry::start();
    let context = Context::busybox("RUN echo pushed > /pushed");
    let push = |addr: &str, name: &str| {
        let mut build = buildctl_build(addr, &context);
        let image = registry.image(name);
        let output = format!(
            "type=image,name={image}:1,push=true,registry.insecure=true,rewrite-timestamp=true"
        );
        build.args(["--output", &output, "--opt", "build-arg:SOURCE_DATE_EPOCH=1700000000"]);
        build
    };
    let name = |addr: &str| if addr == setup.direct.addr() { "direct" } else { "proxied" };
    same_success(&setup.direct.addr(), &setup.proxy.addr(), |addr| {
        let mut build = push(addr, name(addr));
        build.env("DOCKER_CONFIG", registry.docker_config());
        build
    });
    assert_eq!(registry.manifest("direct", "1"), registry.manifest("proxied", "1"));
    let refused = run(&mut push(&setup.proxy.addr(), "nobody"));
    assert!(!refused.status.success() && text(&refused).contains("401"), "{}", text(&refused));
}

#[test]
fn a_cache_is_exported_and_imported() {
    let setup = setup();
    let registry = Registry::start();
    let context = Context::busybox("RUN echo cached > /cached; sleep 1");
    let directory = tempfile::tempdir().expect("a directory");
    let local = directory.path().display();
    let registry_ref = format!("ref={}:main,registry.insecure=true", registry.image("cache"));
    for (to, from) in [
        (format!("type=local,dest={local}"), format!("type=local,src={local}")),
        (
            format!(
                "type=registry,{registry_ref},mode=max,image-manifest=true,oci-mediatypes=true"
            ),
            format!("type=registry,{registry_ref}"),
        ),
    ] {
        let mut export = buildctl_build(&setup.proxy.addr(), &context);
        export.args(["--export-cache", &to]).env("DOCKER_CONFIG", registry.docker_config());
        succeed(&mut export);
        // A daemon that has never seen the project takes the steps from the cache.
        let fresh = Buildkitd::start("fresh");
        let proxy = Proxy::in_front_of([&fresh]).start();
        let mut import = buildctl_build(&proxy.addr(), &context);
        import.args(["--import-cache", &from]).env("DOCKER_CONFIG", registry.docker_config());
        let output = run(&mut import);
        assert!(output.status.success(), "{}", text(&output));
        assert!(text(&output).contains("CACHED"), "{from}: {}", text(&output));
    }
}

#[test]
fn subrequests_are_answered() {
    let setup = setup();
    let context = Context::busybox("FROM scratch AS Other\nARG FLAVOUR=plain");
    for (request, told) in [
        ("frontend.outline", "FLAVOUR"),
        ("frontend.targets", "other"),
        ("frontend.lint", "StageNameCasing"),
    ] {
        let answers = [setup.direct.addr(), setup.proxy.addr()].map(|addr| {
            let mut build = buildctl_build(&addr, &context);
            succeed(build.args(["--opt", &format!("requestid={request}")]))
        });
        assert!(answers[0].contains(told), "{request}: {}", answers[0]);
        assert_eq!(answers[0], answers[1], "{request}");
    }
}

#[test]
fn a_failure_in_a_large_dockerfile_tells_the_same_error() {
    let setup = setup();
    let padding = format!("# {}\n", "x".repeat(98)).repeat(650);
    let context = Context::busybox(&format!("{padding}RUN echo before; exit 7\nRUN true"));
    let (direct, _) =
        same(&setup.direct.addr(), &setup.proxy.addr(), |addr| buildctl_build(addr, &context));
    let text = text(&direct);
    assert!(text.contains("exit code: 7") && text.contains(">>> RUN echo before"), "{text}");
}

#[test]
fn a_dockerfile_of_any_size_that_cannot_be_read_tells_the_same_error_and_harms_no_daemon() {
    let setup = setup();
    // The last error is nearly as long as the longest that the proxy relays.
    for kib in [1_000, 1_500, 2_200] {
        let comment = format!("#{}\n", "x".repeat(98));
        let dockerfile = format!("{}BOGUS x\n", comment.repeat(kib * 1024 / 100));
        let context = Context::new(&dockerfile);
        let outcome =
            same(&setup.direct.addr(), &setup.proxy.addr(), |addr| buildctl_build(addr, &context));
        assert!(text(&outcome.1).contains("unknown instruction: BOGUS"), "{kib} KiB");
    }
    let lost = setup.proxy.metric("buildkit_lb_upstream_errors_total", &[]);
    assert_eq!(lost, 0.0, "{:?}", setup.proxy.records("backend ejected"));
}

#[test]
fn a_silent_step_is_waited_for() {
    let setup = setup();
    let seconds = std::env::var("BUILDKIT_LB_SILENT_SECONDS").unwrap_or_else(|_| "75".into());
    let context = Context::busybox(&format!("RUN sleep {seconds}"));
    succeed(&mut buildctl_build(&setup.proxy.addr(), &context));
}

#[test]
fn a_gibibyte_up_and_down_leaves_the_proxys_memory_flat() {
    let setup = setup();
    let context = Context::new("FROM scratch\nCOPY big /big");
    let make = "head -c 1073741824 /dev/urandom > big";
    succeed(shell(make, &[]).current_dir(context.path()));
    let proxy = Proxy::in_front_of(&setup.fleet[..1]).start();
    let before = proxy.process.memory_kib("VmHWM");
    let directory = tempfile::tempdir().expect("a directory");
    let mut build = buildctl_build(&proxy.addr(), &context);
    build.args(["--output", &format!("type=local,dest={}", directory.path().display())]);
    succeed(&mut build);
    let [sent, got] = [context.path(), directory.path()].map(|directory| directory.join("big"));
    succeed(Command::new(tool("cmp")).args([sent, got]));
    let grown = proxy.process.memory_kib("VmHWM") - before;
    assert!(grown < 64 << 10, "grew by {grown} KiB");
    let record = proxy.records("build ended").pop().expect("one build");
    assert!(record["bytes_up"].as_u64() > Some(1 << 30), "{record}");
    assert!(record["bytes_down"].as_u64() > Some(1 << 30), "{record}");
}

/// Tests that look for processes by their arguments run one at a time.
static SLEEPERS: Mutex<()> = Mutex::new(());

#[test]
fn a_client_that_goes_away_cancels_its_build() {
    let _alone = SLEEPERS.lock();
    let setup = setup();
    for (signal, seconds) in [("INT", "4001"), ("KILL", "4002")] {
        let context = Context::busybox(&format!("RUN sleep {seconds}"));
        let mut client = buildctl_build(&setup.proxy.addr(), &context)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("buildctl runs");
        let step = format!("sleep {seconds}");
        eventually("the step runs", Duration::from_secs(30), || is_running(&step).then_some(()));
        succeed(Command::new(tool("kill")).args(["-s", signal, &client.id().to_string()]));
        // The step itself would run for more than an hour.
        eventually("the step is gone", Duration::from_secs(30), || {
            (!is_running(&step)).then_some(())
        });
        client.wait().expect("ended");
    }
    let codes = || setup.proxy.metric("buildkit_lb_builds_total", &["Cancelled"]);
    eventually("both are counted", Duration::from_secs(5), || (codes() >= 2.0).then_some(()));
}

/// The refs in a list of builds: the second word of each line after the first.
fn refs(histories: &str) -> BTreeSet<&str> {
    let lines = histories.lines().skip(1);
    lines.map(|line| line.split_whitespace().nth(1).expect("a ref")).collect()
}

/// The cache records in a list of disk usage: the first words up to the sums.
fn cache_ids(usage: &str) -> BTreeSet<&str> {
    usage
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

#[test]
fn fleet_commands_see_every_daemon() {
    let setup = setup();
    let context = Context::busybox("RUN echo fleet > /fleet");
    for daemon in &setup.fleet {
        succeed(&mut buildctl_build(&daemon.addr(), &context));
    }
    let through = |args: &[&str]| succeed(buildctl(&setup.proxy.addr()).args(args));
    let from = |daemon: &Buildkitd, args: &[&str]| succeed(buildctl(&daemon.addr()).args(args));
    // Other tests build at the same time: what was there before must be there after.
    for (args, ids) in
        [(&["debug", "histories"][..], refs as fn(&str) -> BTreeSet<&str>), (&["du"], cache_ids)]
    {
        let single: Vec<_> = setup.fleet.iter().map(|daemon| from(daemon, args)).collect();
        let all = through(args);
        let all = ids(&all);
        for (daemon, own) in setup.fleet.iter().zip(&single) {
            let own = ids(own);
            assert!(!own.is_empty(), "{args:?} of {} is empty", daemon.name);
            let missing: Vec<_> = own.difference(&all).collect();
            assert!(missing.is_empty(), "{args:?} leaves out {missing:?} of {}", daemon.name);
        }
    }
    let unknown = run(buildctl(&setup.proxy.addr()).args(["debug", "logs", "nosuchbuild"]));
    assert!(text(&unknown).contains("no such job nosuchbuild"), "{}", text(&unknown));
    assert!(through(&["debug", "workers"]).contains("linux/"));
    assert!(through(&["debug", "info"]).contains("BuildKit"));
}

#[test]
fn logs_of_an_ended_build_come_from_its_daemon_even_after_a_restart_of_the_proxy() {
    let setup = setup();
    // Every daemon has one build with a text of its own.
    let builds: Vec<_> = setup
        .fleet
        .iter()
        .map(|daemon| {
            let alone = Proxy::in_front_of([daemon]).start();
            let words = format!("remember-{}", daemon.name);
            let context = Context::busybox(&format!("RUN echo $(echo {words} | tr a-z A-Z)"));
            let mut build = buildctl_build(&alone.addr(), &context);
            succeed(build.arg("--no-cache"));
            let records = alone.records("build ended");
            // buildx and buildctl ask with Solves of their own, which have no history.
            let build = records
                .iter()
                .filter_map(|record| record["ref"].as_str())
                .find(|build| refs(&daemon.histories()).contains(build));
            (build.expect("its history has it").to_owned(), words.to_uppercase())
        })
        .collect();
    let fresh = Proxy::in_front_of(&setup.fleet).start();
    for (build, words) in &builds {
        for proxy in [&setup.proxy, &fresh] {
            let output = run(buildctl(&proxy.addr()).args(["debug", "logs", build]));
            assert!(output.status.success(), "{}", text(&output));
            assert!(text(&output).contains(words.as_str()), "no {words} in: {}", text(&output));
        }
    }
}
