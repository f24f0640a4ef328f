//! What an operator sees of the proxy, and the commands that show it.

mod changes;
mod refusals;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
mod top;
mod views;

use std::{
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use support::{
    client::{Context, build, buildctl, run},
    proxy::Proxy,
};

/// How long a test waits for what takes a moment on a quiet machine.
const WAIT: Duration = Duration::from_secs(60);

/// A process that is killed when the test drops it.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // The process may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A build that lasts until the test drops it.
struct LongBuild {
    _client: Killed,
    _context: Context,
}

impl LongBuild {
    /// Builds with `client`, whose affinity key is `key`.
    fn start(client: Command, key: &str) -> Self {
        let context = Context::busybox("RUN sleep 5021");
        let mut client = build(client, &context);
        client.args(["--no-cache", "--opt", &format!("build-arg:BUILDKIT_LB_KEY={key}")]);
        let client = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("runs");
        Self { _client: Killed(client), _context: context }
    }

    /// The same with a client of `proxy` without a certificate.
    fn through(proxy: &Proxy, key: &str) -> Self {
        Self::start(buildctl(&proxy.addr()), key)
    }
}

/// `buildkit-lb` with `args`, and with the URL of the admin port of `proxy`.
fn command(proxy: &Proxy, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
    command.env("BUILDKIT_LB_ADMIN", format!("http://{}", proxy.admin_socket())).args(args);
    command
}

/// Runs [`command`] to its end.
fn operate(proxy: &Proxy, args: &[&str]) -> Output {
    run(&mut command(proxy, args))
}

/// What [`operate`] prints; it must succeed.
fn printed(proxy: &Proxy, args: &[&str]) -> String {
    support::client::succeed(&mut command(proxy, args))
}
