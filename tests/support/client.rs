//! Real clients, and something for them to build.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::tools::tool;

/// A build context with Debian's static busybox and the given Dockerfile.
#[derive(Debug)]
pub(crate) struct Context(tempfile::TempDir);

impl Context {
    /// A context whose Dockerfile is `dockerfile`.
    pub(crate) fn new(dockerfile: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let context = Self(directory);
        fs::copy(tool("busybox"), context.path().join("busybox")).expect("copied");
        context.write("Dockerfile", dockerfile);
        context
    }

    /// A context that starts from busybox and then does `steps`.
    pub(crate) fn busybox(steps: &str) -> Self {
        Self::new(&format!(
            "FROM scratch\nCOPY busybox /bin/busybox\n\
             SHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
             ENV PATH=/bin\nRUN busybox --install /bin\n{steps}\n"
        ))
    }

    /// Adds or replaces a file.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), content).expect("written");
    }

    /// The context's directory.
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Whether a process runs whose command line consists of these words, for example a step of a build.
pub(crate) fn is_running(words: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("procfs").flatten();
    processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok()).any(|line| {
        let line = String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ");
        line == words
    })
}

/// `buildctl --addr ADDR`, with an empty home directory.
pub(crate) fn buildctl(addr: &str) -> Command {
    let mut command = Command::new(tool("buildctl"));
    command.args(["--addr", addr]).env_remove("TRACEPARENT").env("DOCKER_CONFIG", "/nonexistent");
    command
}

/// `buildctl --addr ADDR` with the certificates in `directory`.
pub(crate) fn buildctl_tls(addr: &str, directory: &Path) -> Command {
    let mut command = buildctl(addr);
    command.arg("--tlsdir").arg(directory);
    command
}

/// `buildctl build` of a Dockerfile in `context`.
pub(crate) fn buildctl_build(addr: &str, context: &Context) -> Command {
    build(buildctl(addr), context)
}

/// `build` of a Dockerfile in `context` with `command`.
pub(crate) fn build(mut command: Command, context: &Context) -> Command {
    let local = |name: &str| format!("{name}={}", context.path().display());
    command.args(["build", "--progress=plain", "--frontend=dockerfile.v0"]).args([
        "--local",
        &local("context"),
        "--local",
        &local("dockerfile"),
    ]);
    command
}

/// buildx with a builder of its own that leads to `addr`.
#[derive(Debug)]
pub(crate) struct Buildx(tempfile::TempDir);

impl Buildx {
    /// Creates the builder.
    pub(crate) fn new(addr: &str) -> Self {
        let buildx = Self(tempfile::tempdir().expect("a directory"));
        let mut create = buildx.raw();
        create.args(["create", "--name", "b", "--driver", "remote", "--use", addr]);
        succeed(&mut create);
        buildx
    }

    /// Creates the builder, with the certificates in `directory`.
    pub(crate) fn with_tls(addr: &str, directory: &Path) -> Self {
        let buildx = Self(tempfile::tempdir().expect("a directory"));
        let file = |name: &str| directory.join(name).display().to_string();
        let files = [("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")];
        let options = files.map(|(option, name)| format!("{option}={}", file(name))).join(",");
        let mut create = buildx.raw();
        create.args(["create", "--name", "b", "--driver", "remote", "--driver-opt", &options]);
        succeed(create.args(["--use", addr]));
        buildx
    }

    /// Creates the builder with nodes for these platforms at these addresses.
    pub(crate) fn with_nodes(nodes: &[(&str, &str)]) -> Self {
        let buildx = Self(tempfile::tempdir().expect("a directory"));
        for (number, (platform, addr)) in nodes.iter().enumerate() {
            let mut create = buildx.raw();
            create.args(["create", "--name", "b", "--driver", "remote", "--platform", platform]);
            create.arg(if number == 0 { "--use" } else { "--append" }).arg(addr);
            succeed(&mut create);
        }
        buildx
    }

    fn raw(&self) -> Command {
        let mut command = Command::new(tool("buildx"));
        command.env("BUILDX_CONFIG", self.0.path()).env("DOCKER_CONFIG", self.0.path());
        command
    }

    /// A buildx command that uses the builder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.raw();
        command.args(["--builder", "b"]).args(args);
        command
    }

    /// A path for a file of this client.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    command.output().expect("the program runs")
}

/// Runs a command that must succeed, and returns its standard output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both outputs of a command.
pub(crate) fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}
