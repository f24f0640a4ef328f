//! What is compared: buildkit-lb, its peers, and a connection without a proxy.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    certificates::Certificates,
    machine::{self, Cores},
    process::{Process, free_address},
    tools::tool,
    usage::Usage,
};

/// One way from client to daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Candidate {
    Direct,
    HaproxyTcp,
    NginxStream,
    EnvoyTcp,
    HaproxyH2,
    NginxGrpc,
    EnvoyH2,
    /// A binary of this project, with the title of its column.
    BuildkitLb {
        name: String,
        binary: PathBuf,
    },
}

/// The column of the binary that was built from this tree.
pub(crate) const BUILDKIT_LB: &str = "buildkit-lb";

impl Candidate {
    /// All candidates that need no binary of this project.
    pub(crate) const PEERS: [Self; 7] = [
        Self::Direct,
        Self::HaproxyTcp,
        Self::NginxStream,
        Self::EnvoyTcp,
        Self::HaproxyH2,
        Self::NginxGrpc,
        Self::EnvoyH2,
    ];

    /// The name on the command line.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::HaproxyTcp => "haproxy-tcp",
            Self::NginxStream => "nginx-stream",
            Self::EnvoyTcp => "envoy-tcp",
            Self::HaproxyH2 => "haproxy-h2",
            Self::NginxGrpc => "nginx-grpc",
            Self::EnvoyH2 => "envoy-h2",
            Self::BuildkitLb { name, .. } => name,
        }
    }

    /// The title of the column.
    pub(crate) fn title(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::HaproxyTcp => "HAProxy TCP",
            Self::NginxStream => "nginx stream",
            Self::EnvoyTcp => "Envoy TCP",
            Self::HaproxyH2 => "HAProxy h2",
            Self::NginxGrpc => "nginx grpc_pass",
            Self::EnvoyH2 => "Envoy h2",
            Self::BuildkitLb { name, .. } => name,
        }
    }

    /// Starts the candidate in front of the `daemons`. If `cores` are counted, the candidate runs on those. If
    /// there are `certificates`, both sides speak TLS.
    pub(crate) fn start(
        &self,
        daemons: Vec<SocketAddr>,
        dir: &Path,
        cores: Option<&Cores>,
        certificates: Option<&Certificates>,
    ) -> Result<Target> {
        if *self == Self::Direct {
            let name = self.name().to_owned();
            return Ok(Target { name, addresses: daemons, process: None });
        }
        let address = free_address()?;
        let dir = dir.join(self.name());
        fs::create_dir_all(&dir)?;
        let mut command =
            self.command(&Site { listen: address, daemons, dir: &dir, cores, certificates })?;
        if let Some(cores) = cores {
            command.splice(0..0, [path_of("taskset"), "-c".into(), cores.proxy.clone()]);
        }
        let log = dir.join("log");
        let mut process = Process::start(&command, &log)?;
        process
            .wait_until_listening(address, &log)
            .with_context(|| format!("start {}", self.name()))?;
        let name = self.name().to_owned();
        Ok(Target { name, addresses: vec![address], process: Some(process) })
    }

    fn command(&self, site: &Site<'_>) -> Result<Vec<String>> {
        let words = match self {
            Self::Direct => bail!("direct is no program"),
            Self::HaproxyTcp => {
                let config = site.write("haproxy.cfg", include_str!("config/haproxy-tcp.cfg"))?;
                vec![path_of("haproxy"), "-db".into(), "-f".into(), config]
            }
            Self::HaproxyH2 => {
                let template = match site.certificates {
                    None => include_str!("config/haproxy-h2.cfg"),
                    Some(_) => include_str!("config/haproxy-h2-tls.cfg"),
                };
                let config = site.write("haproxy.cfg", template)?;
                vec![path_of("haproxy"), "-db".into(), "-f".into(), config]
            }
            Self::NginxStream => {
                let config = site.write("nginx.conf", include_str!("config/nginx-stream.conf"))?;
                vec![path_of("nginx"), "-c".into(), config]
            }
            Self::NginxGrpc => {
                let template = match site.certificates {
                    None => include_str!("config/nginx-grpc.conf"),
                    Some(_) => include_str!("config/nginx-grpc-tls.conf"),
                };
                let config = site.write("nginx.conf", template)?;
                vec![path_of("nginx"), "-c".into(), config]
            }
            Self::EnvoyTcp => {
                envoy(&site.write("envoy.yaml", include_str!("config/envoy-tcp.yaml"))?)
            }
            Self::EnvoyH2 => {
                let template = match site.certificates {
                    None => include_str!("config/envoy-h2.yaml"),
                    Some(_) => include_str!("config/envoy-h2-tls.yaml"),
                };
                envoy(&site.write("envoy.yaml", template)?)
            }
            Self::BuildkitLb { binary, .. } => {
                let mut words = vec![
                    binary.display().to_string(),
                    "serve".into(),
                    format!("--listen=tcp://{}", site.listen),
                    "--admin-listen=127.0.0.1:0".into(),
                ];
                let daemons = site.daemons.iter().enumerate();
                words.extend(daemons.map(|(at, daemon)| format!("--backend=d{at}=tcp://{daemon}")));
                if let Some(certificates) = site.certificates {
                    let dir = certificates.dir();
                    words.extend(["tls", "backend-tls"].map(|side| format!("--{side}-dir={dir}")));
                }
                words
            }
        };
        Ok(words)
    }
}

/// `benches/run` puts the program on the path, because no package of Debian has it.
const ENVOY: &str = "envoy";

/// The path of a program from a Debian package.
fn path_of(program: &str) -> String {
    tool(program).display().to_string()
}

/// One line with the versions of all candidates.
pub(crate) fn versions() -> String {
    let programs = [
        ("HAProxy", path_of("haproxy"), "-v"),
        ("nginx", path_of("nginx"), "-v"),
        ("Envoy", ENVOY.to_owned(), "--version"),
    ];
    let mut versions: Vec<_> = programs
        .iter()
        .filter_map(|(name, program, flag)| Some(format!("{name} {}", version_of(program, flag)?)))
        .collect();
    versions.extend(machine::buildkit());
    versions.join(", ")
}

/// The first text in a program's output that looks like `1.2.3`.
fn version_of(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let version = text
        .split(|c: char| c == '/' || c == '-' || c.is_whitespace())
        .find(|word| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit()))?;
    Some(version.to_owned())
}

fn envoy(config: &str) -> Vec<String> {
    [ENVOY, "--disable-hot-restart", "-l", "warn", "-c", config].map(str::to_owned).to_vec()
}

/// The addresses of a candidate and of its daemons, and the directory for its files.
struct Site<'a> {
    listen: SocketAddr,
    daemons: Vec<SocketAddr>,
    dir: &'a Path,
    cores: Option<&'a Cores>,
    certificates: Option<&'a Certificates>,
}

impl Site<'_> {
    /// nginx ignores which cores it may use; all other programs heed it.
    fn workers(&self) -> String {
        self.cores.map_or_else(|| "auto".to_owned(), |cores| cores.threads.to_string())
    }

    fn write(&self, name: &str, template: &str) -> Result<String> {
        let text = self
            .with_daemons(template)
            .replace("@listen_port@", &self.listen.port().to_string())
            .replace("@listen@", &self.listen.to_string())
            .replace("@workers@", &self.workers())
            .replace("@dir@", &self.dir.display().to_string())
            .replace(
                "@certificates@",
                &self.certificates.map(Certificates::dir).unwrap_or_default(),
            );
        let path = self.dir.join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// The `template` with each line about a daemon once for each daemon.
    fn with_daemons(&self, template: &str) -> String {
        let mut text = String::new();
        for line in template.lines() {
            let daemons = if line.contains("@upstream") { &self.daemons[..] } else { &[] };
            for (at, daemon) in daemons.iter().enumerate() {
                text += &line
                    .replace("@upstream_number@", &at.to_string())
                    .replace("@upstream_port@", &daemon.port().to_string())
                    .replace("@upstream@", &daemon.to_string());
                text.push('\n');
            }
            if daemons.is_empty() {
                text += line;
                text.push('\n');
            }
        }
        text
    }
}

/// A running candidate.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// Where clients connect: the proxy, or the daemons if there is no proxy.
    pub(crate) addresses: Vec<SocketAddr>,
    process: Option<Process>,
}

impl Target {
    /// Where a single client connects.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// What the proxy has used so far; nothing if there is no proxy.
    pub(crate) fn usage(&self) -> Result<Usage> {
        self.process.as_ref().map_or(Ok(Usage::default()), |process| Usage::of_tree(process.id()))
    }
}
