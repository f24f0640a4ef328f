//! A real registry that demands a password.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    child::Guarded,
    eventually, free_port,
    tools::{shell, tool},
};

/// Debian's docker-registry with one user.
#[derive(Debug)]
pub(crate) struct Registry {
    port: u16,
    credentials: String,
    directory: tempfile::TempDir,
    _process: Guarded,
}

impl Registry {
    /// Starts a registry for `user` with the password `secret`.
    pub(crate) fn start() -> Self {
        Self::start_for("user", "secret")
    }

    /// Starts the registry and waits until it listens.
    pub(crate) fn start_for(user: &str, password: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let (config, users, data) = (path("config.yml"), path("users"), path("data"));
        let made = Command::new(tool("htpasswd")).args(["-Bbc", &users, user, password]).output();
        assert!(made.is_ok_and(|output| output.status.success()), "htpasswd runs");
        let port = free_port();
        let yaml = format!(
            "version: 0.1\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             storage: {{filesystem: {{rootdirectory: '{data}'}}}}\n\
             auth: {{htpasswd: {{realm: test, path: '{users}'}}}}\n"
        );
        std::fs::write(&config, yaml).expect("written");
        let process = Guarded::start_in(&tool("docker-registry"), &["serve", &config], &path(""));
        eventually("the registry listens", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let credentials = format!("{user}:{password}");
        let auth = base64(&credentials);
        let auth = format!(r#"{{"auths":{{"127.0.0.1:{port}":{{"auth":"{auth}"}}}}}}"#);
        std::fs::write(directory.path().join("config.json"), auth).expect("written");
        Self { port, credentials, directory, _process: process }
    }

    /// `HOST:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `HOST:PORT/name`.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    /// The file of users and passwords. The registry reads it again when it changes.
    pub(crate) fn users(&self) -> PathBuf {
        self.directory.path().join("users")
    }

    /// A DOCKER_CONFIG directory with the password.
    pub(crate) fn docker_config(&self) -> &Path {
        self.directory.path()
    }

    /// The manifest of an image in the registry.
    pub(crate) fn manifest(&self, name: &str, tag: &str) -> String {
        let url = format!("http://127.0.0.1:{}/v2/{name}/manifests/{tag}", self.port);
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.oci.image.index.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        let args = ["-sSf", "-u", &self.credentials, "-H", accept, &url];
        let curl = Command::new(tool("curl")).args(args).output();
        let output = curl.expect("curl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

fn base64(text: &str) -> String {
    let script = r#"printf %s "$1" | base64 -w0"#;
    let output = shell(script, &[]).args(["sh", text]).output().expect("bash runs");
    String::from_utf8(output.stdout).expect("ASCII")
}
