//! A fleet behind the proxy builds the proxy's own image, and the image works by itself.

mod support;

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    child::Guarded,
    client::{Context, buildctl_build, run, succeed, text},
    eventually, free_port,
    proxy::Proxy,
    tools::tool,
};

/// The largest size of the image: compressed as it is pulled, and unpacked as it is released.
const MAX_BYTES: u64 = 30_000_000;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The image, built once: its OCI layout and its unpacked root file system.
#[derive(Debug)]
struct Image {
    directory: tempfile::TempDir,
    /// The proxy's record of the build.
    record: Value,
}

impl Image {
    fn built() -> &'static Self {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let fleet = Buildkitd::fleet(2);
            let proxy = Proxy::in_front_of(&fleet).start();
            let directory = tempfile::tempdir().expect("a directory");
            let dest = |name: &str| directory.path().join(name).display().to_string();
            let layout = format!("type=oci,tar=false,dest={}", dest("layout"));
            let root = format!("type=local,dest={}", dest("root"));
            let mut build = image_build(&proxy);
            build.env("BINARY", static_binary(directory.path()));
            succeed(build.args(["--output", &layout, "--output", &root]));
            // Only its owner can read the directory of the export; a runtime's root is readable.
            let open = fs::Permissions::from_mode(0o755);
            fs::set_permissions(directory.path().join("root"), open).expect("changed");
            let record = eventually("the build's record", Duration::from_secs(5), || {
                proxy.records("build ended").pop()
            });
            Self { directory, record }
        })
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// A JSON file of the layout, by digest.
    fn blob(&self, digest: &Value) -> Value {
        let name = digest.as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
        json(&self.directory.path().join("layout/blobs/sha256").join(name))
    }

    fn manifest(&self) -> Value {
        let index = json(&self.directory.path().join("layout/index.json"));
        self.blob(&index["manifests"][0]["digest"])
    }

    /// The image's configuration for a runtime.
    fn config(&self) -> Value {
        self.blob(&self.manifest()["config"]["digest"])["config"].clone()
    }

    /// The command that runs the image's binary in `root`, as the image's user.
    fn command(&self, root: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(tool("chroot"));
        let user = self.config()["User"].as_str().expect("a user").to_owned();
        command.arg(format!("--userspec={user}")).arg(root);
        command.arg("/usr/bin/buildkit-lb").args(args);
        command
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("JSON")
}

/// The script that builds the image with the fleet behind `proxy`.
fn image_build(proxy: &Proxy) -> Command {
    let mut build = Command::new(Path::new(ROOT).join("deploy/image/build"));
    build.env("BUILDCTL", tool("buildctl")).env("BUILDKIT_HOST", proxy.addr());
    build.env("DOCKER_CONFIG", "/nonexistent").arg("--progress=plain");
    build
}

/// The program under test, linked as the Dockerfile links it. A release build with whole-program optimisation takes
/// minutes, so this is a debug build; `BUILDKIT_LB_IMAGE_BINARY` names another program to test.
fn static_binary(directory: &Path) -> PathBuf {
    if let Some(binary) = given_binary() {
        return binary;
    }
    let mut compiled = Command::new(env!("CARGO"));
    compiled.args(["build", "--locked", "--bin", "buildkit-lb", "--message-format=json"]);
    let messages = succeed(compiled.current_dir(ROOT));
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let binary = directory.join("static");
    let mut link = Command::new("rustc");
    link.current_dir(ROOT).args(["--edition=2024", "--crate-type=bin", "src/main.rs", "-o"]);
    link.arg(&binary).args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    for message in messages {
        let name = message["target"]["name"].as_str().unwrap_or_default().replace('-', "_");
        for file in message["filenames"].as_array().into_iter().flatten() {
            let file = Path::new(file.as_str().expect("a path"));
            if file.extension().is_some_and(|extension| extension == "rlib") {
                link.arg(format!("--extern={name}={}", file.display()));
                let beside = file.parent().expect("a directory").display();
                link.arg(format!("-Ldependency={beside}"));
            }
        }
        for path in message["linked_paths"].as_array().into_iter().flatten() {
            link.args(["-L", path.as_str().expect("a path")]);
        }
    }
    succeed(&mut link);
    binary
}

fn given_binary() -> Option<PathBuf> {
    std::env::var_os("BUILDKIT_LB_IMAGE_BINARY").map(PathBuf::from)
}

#[test]
fn the_fleet_builds_an_image_with_nothing_but_the_binary() {
    let image = Image::built();
    assert_eq!(image.record["code"], "OK");
    let list =
        succeed(Command::new(tool("find")).args([".", "-type", "f"]).current_dir(image.root()));
    assert_eq!(list.trim(), "./usr/bin/buildkit-lb");
    let layers = image.manifest()["layers"].as_array().expect("a list").clone();
    let pulled: u64 = layers.iter().map(|layer| layer["size"].as_u64().expect("a number")).sum();
    let unpacked = fs::metadata(image.root().join("usr/bin/buildkit-lb")).expect("there").len();
    println!("the image has {pulled} bytes, {unpacked} unpacked");
    assert!(pulled <= MAX_BYTES, "{pulled} bytes");
    // Without optimisation the binary is three times as large.
    assert!(given_binary().is_none() || unpacked <= MAX_BYTES, "{unpacked} bytes");
}

#[test]
fn the_image_tells_what_it_is_and_whom_it_runs_as() {
    let config = Image::built().config();
    let user = config["User"].as_str().expect("a user");
    let ids: Vec<u32> = user.split(':').map(|id| id.parse().expect("a number")).collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| *id != 0), "{user}");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/bin/buildkit-lb"]));
    assert_eq!(config["Cmd"], serde_json::json!(["serve"]));
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(label("version"), env!("CARGO_PKG_VERSION"));
    for name in ["revision", "created", "title", "licenses"] {
        assert!(label(name).as_str().is_some_and(|value| !value.is_empty()), "{name}");
    }
}

#[test]
fn the_binary_runs_alone_in_its_root() {
    let image = Image::built();
    assert!(
        succeed(&mut image.command(&image.root(), &["--version"]))
            .contains(env!("CARGO_PKG_VERSION"))
    );
    succeed(
        &mut image
            .command(&image.root(), &["check-config", "--backend", "a=tcp://buildkitd-0:1234"]),
    );
    let wrong =
        run(&mut image.command(&image.root(), &["check-config", "--backend", "a=http://a"]));
    assert_eq!(wrong.status.code(), Some(64), "{}", text(&wrong));
}

/// Answers every question with 127.0.0.1. It uses port 53, because resolv.conf cannot name another port.
fn name_server() -> Ipv4Addr {
    let process = std::process::id().to_be_bytes();
    let addr = Ipv4Addr::new(127, 53, process[2], process[3].clamp(1, 254));
    let socket = UdpSocket::bind((addr, 53)).expect("port 53 of a loopback address of our own");
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut packet) {
            // One question: header, name, type, class. Other records in the message are ignored.
            let name = packet[12..length].iter().position(|byte| *byte == 0).expect("a name");
            let end = 12 + name + 5;
            let is_a = packet[end - 4..end - 2] == [0, 1];
            let mut answer = packet[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                // The question's name, A, IN, one minute, four bytes.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, client);
        }
    });
    addr
}

#[test]
fn daemons_are_found_by_name_with_nothing_else_in_the_root() {
    let daemon = Buildkitd::start("named");
    let image = Image::built();
    let mut pod = tempfile::Builder::new();
    let pod = pod.permissions(fs::Permissions::from_mode(0o755)).tempdir().expect("a directory");
    succeed(Command::new(tool("cp")).arg("-a").arg(image.root().join("usr")).arg(pod.path()));
    // A container runtime makes these devices too; a static binary has no other source of random numbers.
    let dev = pod.path().join("dev");
    fs::create_dir(&dev).expect("made");
    for (name, minor) in [("random", "8"), ("urandom", "9")] {
        let device = dev.join(name);
        succeed(
            Command::new(tool("mknod")).args(["-m", "666"]).arg(device).args(["c", "1", minor]),
        );
    }
    // As the kubelet mounts them.
    let etc = pod.path().join("etc");
    fs::create_dir(&etc).expect("made");
    fs::write(etc.join("hosts"), "127.0.0.1 buildkitd-in-hosts\n").expect("written");
    fs::write(etc.join("resolv.conf"), format!("nameserver {}\n", name_server())).expect("written");
    let context = Context::busybox("RUN echo named > /named");
    let port = daemon.addr().rsplit(':').next().expect("a port").to_owned();
    for host in ["buildkitd-in-hosts", "buildkitd-0.buildkitd.build.svc.cluster.local"] {
        let listen = format!("127.0.0.1:{}", free_port());
        let backend = format!("d=tcp://{host}:{port}");
        let serve = ["serve", "--listen", &listen, "--admin-listen", "127.0.0.1:0"];
        let serve = image.command(pod.path(), &[&serve[..], &["--backend", &backend]].concat());
        let args: Vec<_> = serve.get_args().map(|arg| arg.to_str().expect("UTF-8")).collect();
        let _proxy = Guarded::start(&tool("chroot"), &args);
        eventually("the proxy listens", Duration::from_secs(10), || {
            std::net::TcpStream::connect(&listen).ok()
        });
        succeed(&mut buildctl_build(&format!("tcp://{listen}"), &context));
    }
}

#[test]
fn the_context_holds_what_the_binary_is_compiled_from_and_little_else() {
    let daemon = Buildkitd::start("source");
    let proxy = Proxy::in_front_of([&daemon]).start();
    // Always in the same directory, so that cargo recognises what it has compiled.
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("image-source");
    let _ = fs::remove_dir_all(&source);
    let mut build = image_build(&proxy);
    build.args(["--opt", "target=source", "--opt", "build-arg:BUILDER=scratch", "--output"]);
    succeed(build.arg(format!("type=local,dest={}", source.display())));
    for left_out in ["target", ".git", "tests", "deploy", "rust-toolchain.toml"] {
        assert!(!source.join(left_out).exists(), "{left_out} is in the context");
    }
    let mut check = Command::new(env!("CARGO"));
    check.args(["check", "--locked", "--bin", "buildkit-lb"]).current_dir(&source);
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a directory");
    succeed(check.env("CARGO_TARGET_DIR", target));
}

#[test]
fn the_builder_has_the_pinned_rust() {
    let pinned = include_str!("../rust-toolchain.toml");
    let channel = pinned.split('"').nth(1).expect("a channel");
    let dockerfile = include_str!("../deploy/image/Dockerfile");
    assert!(dockerfile.contains(&format!("/rust:{channel}-")), "rust {channel}");
}
