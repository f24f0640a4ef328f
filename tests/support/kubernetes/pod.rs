//! A real buildkitd in a network namespace of its own, with an address that this machine reaches.
//!
//! The namespace has no name, so namespace and link are gone when the daemon's process is gone.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::support::{
    buildkitd::{snapshotter, unmount_below},
    child::Guarded,
    eventually,
    tools::tool,
};

/// The script that waits for the link and then becomes the daemon.
const ENTRY: &str = r#"until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done; exec "$@""#;

/// The address of this machine's end of each link.
pub(crate) const HOST: &str = "10.213.0.1";

/// The daemon of one pod.
#[derive(Debug)]
pub(crate) struct PodDaemon {
    ip: String,
    process: Option<Guarded>,
    root: tempfile::TempDir,
}

impl PodDaemon {
    /// Installs the programs before anybody waits for a daemon.
    pub(crate) fn install() {
        for program in ["buildkitd", "curl", "ip"] {
            tool(program);
        }
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, &[])
    }

    /// Starts the daemon with further `flags`, and waits until it answers.
    pub(crate) fn start_with(name: &str, flags: &[String]) -> Self {
        let root = tempfile::Builder::new().prefix("pod-").tempdir().expect("a directory");
        let directory = root.path().to_string_lossy().into_owned();
        let otel = format!("{directory}/otel.sock");
        let buildkitd = tool("buildkitd").to_string_lossy().into_owned();
        let args = ["--net", "bash", "-c", ENTRY, name, &buildkitd, "--addr", "tcp://0.0.0.0:1234"];
        let own =
            ["--root", &directory, "--oci-worker-binary", "runc", "--otel-socket-path", &otel];
        // A probe asks the socket inside the pod, which needs no certificate.
        let socket = format!("unix://{directory}/buildkitd.sock");
        let own =
            [&own[..], &["--addr", &socket, "--oci-worker-snapshotter", snapshotter()]].concat();
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let args = [&args[..], &own, &flags].concat();
        let process = Guarded::start_in(&tool("unshare"), &args, &directory);
        let ip = link(process.pid());
        eventually("the pod's buildkitd answers", Duration::from_secs(60), || {
            let mut info = Command::new(tool("buildctl"));
            let output = info.args(["--addr", &socket, "debug", "info"]).output().ok()?;
            output.status.success().then_some(())
        });
        Self { ip, process: Some(process), root }
    }

    /// The daemon's address.
    pub(crate) fn ip(&self) -> &str {
        &self.ip
    }

    /// Lets the daemon answer for a network of 4096 addresses too, like many daemons. Returns the third number of the
    /// first address, 10.214.THIRD.0.
    pub(crate) fn answer_for_many(&self) -> u8 {
        let pid = self.process.as_ref().expect("it runs").pid().to_string();
        // Networks that other tests use are skipped.
        let start = u8::try_from(std::process::id() % 16).expect("below 16");
        let third = (0..16).map(|n| (start + n) % 16 * 16).find(|third| {
            let network = format!("10.214.{third}.0/20");
            let mut route = Command::new(tool("ip"));
            let output = route.args(["route", "add", &network, "via", &self.ip]).output();
            output.expect("ip runs").status.success()
        });
        let third = third.expect("a free network");
        let network = format!("10.214.{third}.0/20");
        let local = ["ip", "route", "add", "local", &network, "dev", "lo"];
        run(&[&["nsenter", "--net", "--target", &pid], &local[..]].concat());
        third
    }

    /// A command in the daemon's network.
    pub(crate) fn inside(&self, args: &[&str]) -> Command {
        let mut command = Command::new(tool("nsenter"));
        let pid = self.process.as_ref().expect("it runs").pid().to_string();
        command.args(["--net", "--target", &pid]).args(args);
        command
    }

    /// Drops every packet that leaves the network, without an error to anybody, like the loss of a node.
    pub(crate) fn cut_off(&self) {
        let output = self.inside(&["ip", "route", "replace", "blackhole", HOST]).output();
        let output = output.expect("nsenter runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Ends the daemon like a kubelet: the hook, then TERM, then KILL, all within the grace period.
    pub(crate) fn stop(&mut self, hook: &[String], grace: Duration) {
        let start = Instant::now();
        let process = self.process.as_mut().expect("it runs");
        let left = || grace.saturating_sub(start.elapsed());
        if !hook.is_empty() {
            let (pid, limit) = (process.pid().to_string(), left().as_secs().to_string());
            let mut enter = Command::new(tool("timeout"));
            enter.arg(&limit).args(["nsenter", "--net", "--target", &pid]).args(hook);
            let output = enter.output().expect("nsenter runs");
            let told = String::from_utf8_lossy(&output.stderr);
            eprintln!("preStop of {}: {}, {:?} {told}", self.ip, output.status, start.elapsed());
        }
        process.signal("TERM");
        while process.is_running() && !left().is_zero() {
            std::thread::sleep(Duration::from_millis(20));
        }
        if process.is_running() {
            process.signal("KILL");
        }
    }
}

impl Drop for PodDaemon {
    fn drop(&mut self) {
        self.process = None;
        unmount_below(self.root.path());
    }
}

/// Links the network of process `pid` with this machine's. Returns its address there.
fn link(pid: u32) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let ours = network("self");
    eventually("the pod has a network of its own", Duration::from_secs(10), || {
        network(&pid.to_string()).filter(|theirs| Some(theirs) != ours.as_ref())
    });
    let end = format!("pod{pid}");
    let pid = pid.to_string();
    run(&["ip", "link", "add", &end, "type", "veth", "peer", "name", "peer", "netns", &pid]);
    let inside = |args: &[&str]| run(&[&["nsenter", "--net", "--target", &pid], args].concat());
    // Each process begins with another address, and skips addresses that are in use.
    let start = std::process::id().wrapping_mul(97);
    let ip = (0..60_000).find_map(|_| {
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 60_000 + 300;
        let ip = format!("10.213.{}.{}", n / 250, n % 250 + 2);
        let routes = Command::new(tool("ip")).args(["route", "show", &ip]).output().ok()?;
        routes.stdout.is_empty().then_some(ip)
    });
    let ip = ip.expect("a free address");
    run(&["ip", "addr", "add", HOST, "peer", &ip, "dev", &end]);
    run(&["ip", "link", "set", &end, "up"]);
    inside(&["ip", "addr", "add", &ip, "peer", HOST, "dev", "peer"]);
    inside(&["ip", "link", "set", "lo", "up"]);
    inside(&["ip", "link", "set", "peer", "up"]);
    inside(&["ip", "link", "set", "peer", "name", "eth0"]);
    ip
}

fn run(command: &[&str]) {
    let output = Command::new(tool(command[0])).args(&command[1..]).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
}
