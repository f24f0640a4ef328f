//! The real proxy binary.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use super::{buildkitd::Buildkitd, child::Guarded, eventually, free_port, tools::tool};

/// The proxy before it is started.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    args: Vec<String>,
    admin: Option<String>,
    control: Option<String>,
    variables: Vec<String>,
    file: Option<NamedTempFile>,
    stderr: Option<String>,
    descriptors: Option<u32>,
}

impl Builder {
    /// Limits the number of files and sockets that the proxy may open.
    pub(crate) fn descriptors(self, limit: u32) -> Self {
        Self { descriptors: Some(limit), ..self }
    }

    /// Adds a backend as `NAME=ADDR`.
    pub(crate) fn backend(mut self, backend: &str) -> Self {
        self.args.extend(["--backend".to_owned(), backend.to_owned()]);
        self
    }

    /// Chooses the policy.
    pub(crate) fn policy(self, policy: &str) -> Self {
        self.args(&["--policy", policy])
    }

    /// Adds any arguments.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Sets the address of the admin port.
    pub(crate) fn admin(self, address: &str) -> Self {
        Self { admin: Some(address.to_owned()), ..self }
    }

    /// Sets the address of the control listener, in place of a socket of its own.
    pub(crate) fn control(self, address: &str) -> Self {
        Self { control: Some(address.to_owned()), ..self }
    }

    /// Uses this configuration file, which has the addresses to listen on.
    pub(crate) fn file(self, text: &str) -> Self {
        let file = NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        Self { file: Some(file), ..self }
    }

    /// Finds the daemons of a Service, with this kubeconfig.
    pub(crate) fn discover(self, service: &str, kubeconfig: &Path) -> Self {
        self.args(&["--discover", &format!("kubernetes://{service}")]).kubeconfig(kubeconfig)
    }

    /// Uses this kubeconfig for the Kubernetes API.
    pub(crate) fn kubeconfig(self, kubeconfig: &Path) -> Self {
        self.variable(&format!("KUBECONFIG={}", kubeconfig.display()))
    }

    /// Sets a variable of the environment, as `NAME=VALUE`.
    pub(crate) fn variable(mut self, variable: &str) -> Self {
        self.variables.push(variable.to_owned());
        self
    }

    /// Redirects the log as bash writes it. The test cannot read the log then.
    pub(crate) fn stderr(self, redirection: &str) -> Self {
        Self { stderr: Some(redirection.to_owned()), ..self }
    }

    /// Starts the proxy and waits until it listens.
    pub(crate) fn start(self) -> Proxy {
        let binary = env!("CARGO_BIN_EXE_buildkit-lb");
        let (listen, own_admin) = match self.stderr {
            Some(_) => (free_port(), free_port()),
            None => (0, 0),
        };
        let (listen, own_admin) =
            (format!("tcp://127.0.0.1:{listen}"), format!("127.0.0.1:{own_admin}"));
        let mut args: Vec<_> = self.variables.iter().map(String::as_str).collect();
        let admin = self.admin.as_deref().unwrap_or(&own_admin);
        let redirected =
            self.stderr.as_ref().map(|redirection| format!("exec \"$@\" {redirection}"));
        if let Some(script) = &redirected {
            args.extend(["bash", "-c", script, "bash"]);
        }
        let limited = self.descriptors.map(|limit| format!("ulimit -n {limit} && exec \"$@\""));
        if let Some(script) = &limited {
            args.extend(["bash", "-c", script, "bash"]);
        }
        args.extend([binary, "serve"]);
        match &self.file {
            Some(file) => args.extend(["--config", file.path().to_str().expect("a UTF-8 path")]),
            None => args.extend(["--listen", &listen]),
        }
        args.extend(["--admin-listen", admin, "--log-format", "json"]);
        let directory = tempfile::tempdir().expect("a directory");
        let control = directory.path().join("control.sock");
        let own = format!("unix://{}", control.display());
        args.extend(["--control-listen", self.control.as_deref().unwrap_or(&own)]);
        args.extend(self.args.iter().map(String::as_str));
        let process = Guarded::start(&tool("env"), &args);
        if redirected.is_some() {
            let (addr, admin, file) = (listen, own_admin, self.file);
            let proxy = Proxy { addr, admin, control, process, _directory: directory, _file: file };
            eventually("the proxy listens", Duration::from_secs(10), || {
                let sockets = [proxy.socket(), proxy.admin.clone()];
                sockets.iter().all(|socket| TcpStream::connect(socket).is_ok()).then_some(())
            });
            return proxy;
        }
        let bound = |port: &str| {
            eventually("the proxy listens", Duration::from_secs(10), || {
                let records = records(&process.log(), "listening");
                let record = records.into_iter().find(|record| record["port_name"] == port)?;
                record["address"].as_str().map(str::to_owned)
            })
        };
        let (addr, admin) = (bound("grpc"), bound("admin"));
        Proxy { addr, admin, control, process, _directory: directory, _file: self.file }
    }
}

/// A running proxy.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: String,
    admin: String,
    control: PathBuf,
    /// The proxy's process.
    pub(crate) process: Guarded,
    _directory: TempDir,
    _file: Option<NamedTempFile>,
}

impl Proxy {
    /// A proxy for `fleet` with the policy least-builds, unless the test chooses another.
    pub(crate) fn in_front_of<'a>(fleet: impl IntoIterator<Item = &'a Buildkitd>) -> Builder {
        fleet
            .into_iter()
            .fold(Builder::default(), |builder, daemon| builder.backend(&daemon.backend()))
    }

    /// The address for clients, as `tcp://HOST:PORT`.
    pub(crate) fn addr(&self) -> String {
        self.addr.clone()
    }

    /// The address for clients of one pool.
    pub(crate) fn addr_of(&self, pool: &str) -> String {
        eventually("the pool listens", Duration::from_secs(5), || {
            let records = self.records("listening").into_iter();
            let mut own = records.filter(|record| record["pool"] == pool);
            own.next()?["address"].as_str().map(str::to_owned)
        })
    }

    /// [`Self::addr`] without `tcp://`.
    pub(crate) fn socket(&self) -> String {
        self.addr.trim_start_matches("tcp://").to_owned()
    }

    /// The address of the admin port, as `HOST:PORT`.
    pub(crate) fn admin_socket(&self) -> &str {
        &self.admin
    }

    /// The fields of the log records with this message.
    pub(crate) fn records(&self, message: &str) -> Vec<Value> {
        records(&self.process.log(), message)
    }

    /// The "build ended" record of one build.
    pub(crate) fn build(&self, build: &str) -> Value {
        eventually("the build's record", Duration::from_secs(5), || {
            self.records("build ended").into_iter().find(|record| record["ref"] == build)
        })
    }

    /// Sends a request to the admin port. Returns status code and body.
    pub(crate) fn admin(&self, method: &str, path: &str) -> (u16, String) {
        self.admin_with(method, path, "")
    }

    /// The same with further header lines, each with its CRLF.
    pub(crate) fn admin_with(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let stream = TcpStream::connect(&self.admin).expect("the admin port");
        // A missing answer must fail the test, not hang it.
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        ask(stream, method, path, headers)
    }

    /// Sends a request to the control listener, where nobody needs a token.
    pub(crate) fn control(&self, method: &str, path: &str) -> (u16, String) {
        self.control_with(method, path, "")
    }

    /// The same with further header lines, each with its CRLF.
    pub(crate) fn control_with(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let stream = UnixStream::connect(&self.control).expect("the control listener");
        ask(stream, method, path, headers)
    }

    /// The path of the control listener's socket.
    pub(crate) fn control_socket(&self) -> &Path {
        &self.control
    }

    /// `/status.json`.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.admin("GET", "/status.json").1).expect("JSON")
    }

    /// Waits until `count` backends are ready, at most `limit`.
    pub(crate) fn wait_ready(&self, count: u32, limit: Duration) {
        eventually("the backends are ready", limit, || {
            let ready = self.metric("buildkit_lb_backend_state", &["state=\"ready\""]);
            (ready == f64::from(count)).then_some(())
        });
    }

    /// The sum of a metric's series whose labels contain all of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_code, text) = self.admin("GET", "/metrics");
        let series = text.lines().filter(|line| {
            line.starts_with(name)
                && line[name.len()..].starts_with(['{', ' '])
                && labels.iter().all(|label| line.contains(label))
        });
        series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Sends one HTTP/1.1 request. Returns status code and body of the answer.
fn ask(mut stream: impl Read + Write, method: &str, path: &str, headers: &str) -> (u16, String) {
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("read");
    let (head, body) = response.split_once("\r\n\r\n").expect("an HTTP response");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (code, body.to_owned())
}

fn records(log: &str, message: &str) -> Vec<Value> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|record| record["fields"].clone())
        .filter(|fields| fields["message"] == message)
        .collect()
}
