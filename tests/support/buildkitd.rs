//! Real buildkitd daemons.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use super::{child::Guarded, eventually, free_port, tools::tool};

/// One buildkitd with a root directory of its own.
#[derive(Debug)]
pub(crate) struct Buildkitd {
    /// The name of the daemon for the proxy.
    pub(crate) name: String,
    port: u16,
    process: Option<Guarded>,
    root: tempfile::TempDir,
    /// The program that the daemon runs.
    program: &'static str,
    /// The daemon's certificates, and those of a client that the daemon accepts.
    tls: Option<[PathBuf; 2]>,
    /// Further arguments, and further variables of the environment as `NAME=VALUE`.
    extra: [Vec<String>; 2],
}

impl Buildkitd {
    /// Starts a daemon and waits until it answers.
    pub(crate) fn start(name: &str) -> Self {
        Self::start_program(name, "buildkitd", None)
    }

    /// Starts a daemon that speaks TLS with the certificates in `own` and demands certificates of clients; it accepts
    /// those in `client`.
    pub(crate) fn start_tls(name: &str, own: &Path, client: &Path) -> Self {
        Self::start_program(name, "buildkitd", Some([own.to_owned(), client.to_owned()]))
    }

    /// Starts a daemon with these variables in its environment, as `NAME=VALUE`.
    pub(crate) fn start_with(name: &str, variables: &[&str]) -> Self {
        let mut daemon = Self::absent(name);
        daemon.extra[1] = variables.iter().map(ToString::to_string).collect();
        daemon.restart();
        daemon
    }

    /// Starts a daemon that serves metrics at [`Self::metrics_port`].
    pub(crate) fn start_with_metrics(name: &str) -> Self {
        let mut daemon = Self::absent(name);
        let address = format!("127.0.0.1:{}", free_port());
        daemon.extra[0] = vec!["--debugaddr".to_owned(), address];
        daemon.restart();
        daemon
    }

    /// The port at which the daemon serves metrics.
    pub(crate) fn metrics_port(&self) -> &str {
        let address = self.extra[0].last().expect("it serves metrics");
        address.rsplit(':').next().expect("a port")
    }

    /// Starts a daemon of v0.16, the last version that ignores the space limits of a prune.
    pub(crate) fn start_old(name: &str) -> Self {
        Self::start_program(name, "old-buildkitd", None)
    }

    /// Starts a daemon whose disk has 64 MiB.
    pub(crate) fn start_small(name: &str) -> Self {
        let root = directory();
        let mut mount = Command::new(tool("mount"));
        let mounted =
            mount.args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(root.path()).status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount {}", root.path().display());
        Self::start_in(name, "buildkitd", root, None)
    }

    /// A daemon that has not started yet; [`Self::restart`] starts it.
    pub(crate) fn absent(name: &str) -> Self {
        Self::new(name, "buildkitd", directory(), None)
    }

    /// [`Self::absent`] with the version of [`Self::start_old`].
    pub(crate) fn absent_old(name: &str) -> Self {
        Self::new(name, "old-buildkitd", directory(), None)
    }

    fn start_program(name: &str, program: &'static str, tls: Option<[PathBuf; 2]>) -> Self {
        Self::start_in(name, program, directory(), tls)
    }

    fn start_in(
        name: &str,
        program: &'static str,
        root: tempfile::TempDir,
        tls: Option<[PathBuf; 2]>,
    ) -> Self {
        let mut daemon = Self::new(name, program, root, tls);
        daemon.restart();
        daemon
    }

    fn new(
        name: &str,
        program: &'static str,
        root: tempfile::TempDir,
        tls: Option<[PathBuf; 2]>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            port: free_port(),
            process: None,
            root,
            program,
            tls,
            extra: Default::default(),
        }
    }

    /// Starts `count` daemons at once.
    pub(crate) fn fleet(count: usize) -> Vec<Self> {
        let start = |index: usize| std::thread::spawn(move || Self::start(&format!("d{index}")));
        let starting: Vec<_> = (0..count).map(start).collect();
        starting.into_iter().map(|daemon| daemon.join().expect("a daemon starts")).collect()
    }

    /// The daemon's address.
    pub(crate) fn addr(&self) -> String {
        format!("tcp://127.0.0.1:{}", self.port)
    }

    /// The daemon as the proxy's `--backend` writes it.
    pub(crate) fn backend(&self) -> String {
        format!("{}={}", self.name, self.addr())
    }

    /// The daemon's process.
    pub(crate) fn process(&self) -> &Guarded {
        self.process.as_ref().expect("it runs")
    }

    /// Kills the daemon with KILL, like the loss of its node.
    pub(crate) fn kill(&mut self) {
        self.process().signal("KILL");
        self.process = None;
    }

    /// Starts the daemon again, with the same port and directory.
    pub(crate) fn restart(&mut self) {
        let root = self.root.path().to_str().expect("a UTF-8 path");
        let addr = self.addr();
        let args = ["--addr", &addr, "--root", root, "--oci-worker-binary", "runc"];
        // Daemons that start at the same time would contend for one socket at its default path.
        let otel = format!("{root}/otel.sock");
        let own = ["--oci-worker-snapshotter", snapshotter(), "--otel-socket-path", &otel];
        // Steps have this machine's network only if they ask for it.
        let network = ["--allow-insecure-entitlement", "network.host"];
        let own_files = self.tls.as_ref().map(|[own, _client]| {
            ["ca.pem", "cert.pem", "key.pem"].map(|name| own.join(name).display().to_string())
        });
        let tls = own_files.as_ref().map_or(Vec::new(), |[ca, certificate, key]| {
            vec!["--tlscacert", ca, "--tlscert", certificate, "--tlskey", key]
        });
        let program = tool(self.program);
        let program = program.to_str().expect("a UTF-8 path");
        let [more, variables] =
            [0, 1].map(|of| self.extra[of].iter().map(String::as_str).collect::<Vec<_>>());
        let args = [&variables[..], &[program], &args, &own, &network, &tls, &more].concat();
        self.process = Some(Guarded::start_in(&tool("env"), &args, root));
        let addr = self.addr();
        eventually("buildkitd answers", Duration::from_secs(60), || {
            let mut info = Command::new(tool("buildctl"));
            if let Some([_own, client]) = &self.tls {
                info.arg("--tlsdir").arg(client);
            }
            let output = info.args(["--addr", &addr, "debug", "info"]).output().ok()?;
            output.status.success().then_some(())
        });
    }

    /// Fills the daemon's disk to the last byte with a file, and returns the file.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.root.path().join("filler");
        let mut file = File::create(&path).expect("a file");
        let block = vec![0; 64 << 10];
        let mut len = block.len();
        while len > 0 {
            match file.write(&block[..len]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => len /= 2,
                Err(error) => unreachable!("{error}"),
            }
        }
        path
    }

    /// The refs in the daemon's history.
    pub(crate) fn histories(&self) -> String {
        let mut histories = Command::new(tool("buildctl"));
        let output = histories.args(["--addr", &self.addr(), "debug", "histories"]).output();
        String::from_utf8_lossy(&output.expect("buildctl runs").stdout).into_owned()
    }
}

impl Drop for Buildkitd {
    fn drop(&mut self) {
        self.process = None;
        unmount_below(self.root.path());
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("buildkitd-").tempdir().expect("a directory")
}

/// Removes the snapshot mounts that a killed daemon left in its directory.
pub(crate) fn unmount_below(root: &Path) {
    let root = root.to_string_lossy();
    for line in std::fs::read_to_string("/proc/mounts").unwrap_or_default().lines() {
        if let Some(target) = line.split(' ').nth(1).filter(|t| t.starts_with(&*root)) {
            let _ = Command::new(tool("umount")).args(["-l", target]).status();
        }
    }
}

/// overlayfs where it works, native otherwise. Found by a trial, and printed once.
pub(crate) fn snapshotter() -> &'static str {
    static CHOSEN: OnceLock<&str> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let chosen = if overlay_works() { "overlayfs" } else { "native" };
        eprintln!("buildkitd uses the {chosen} snapshotter");
        chosen
    })
}

fn overlay_works() -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        path.to_string_lossy().into_owned()
    };
    let (lower, upper, work, merged) = (path("l"), path("u"), path("w"), path("m"));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mount = ["-t", "overlay", "overlay", "-o", &options, &merged];
    let run = |program: &str, args: &[&str]| {
        Command::new(tool(program)).args(args).status().is_ok_and(|status| status.success())
    };
    run("mount", &mount) && run("umount", &[Path::new(&merged).to_str().expect("UTF-8")])
}
