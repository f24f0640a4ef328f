//! A machine that runs the steps of a workflow in a checkout of a tag.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::{
    ROOT, VERSION, profile,
    support::{
        buildkitd::Buildkitd,
        client::{Context, buildctl_build, succeed},
        proxy::Proxy,
        registry::Registry,
        tools::{shell, tool},
    },
};

/// There is no Docker in a test. The daemon runs already, and buildctl and buildx are the real ones.
const DOCKER: &str = r#"#!/bin/sh
case $1 in
login) cat >/dev/null ;;
run | exec) ;;
cp) cp "$TEST_BUILDCTL" "$3" ;;
buildx) shift && exec "$TEST_BUILDX" "$@" ;;
*) echo "docker: $*" >&2; exit 2 ;;
esac
"#;

/// The registry has no TLS, and the file of the registry's password is there already.
const HELM: &str = r#"#!/bin/sh
case $1 in
registry) cat >/dev/null ;;
push) exec "$TEST_HELM" "$@" --plain-http ;;
*) exec "$TEST_HELM" "$@" ;;
esac
"#;

/// No log of signatures can be reached from a test.
const COSIGN: &str = r#"#!/bin/sh
[ "$1" != sign ] || set -- "$@" --tlog-upload=false --use-signing-config=false
exec "$TEST_COSIGN" "$@"
"#;

const AZ: &str = "#!/bin/sh\n[ \"$1 $2\" = \"acr login\" ]\n";

/// A registry that demands a password, and a fleet that builds.
#[derive(Debug)]
pub(super) struct Hosts {
    pub(super) registry: Registry,
    proxy: Proxy,
    _fleet: Vec<Buildkitd>,
    /// An image that lists packages.
    generator: String,
}

impl Hosts {
    pub(super) fn shared() -> &'static Self {
        static HOSTS: OnceLock<Hosts> = OnceLock::new();
        HOSTS.get_or_init(|| {
            let fleet = Buildkitd::fleet(2);
            let proxy = Proxy::in_front_of(&fleet).start();
            let registry = Registry::start();
            let generator = generator(&registry, &proxy);
            Self { registry, proxy, _fleet: fleet, generator }
        })
    }
}

/// Lists packages by the protocol of BuildKit's generators. The list is always the same: the tests are about the release,
/// not about the generator.
const SCAN: &str = r#"#!/bin/busybox sh
cat >"$BUILDKIT_SCAN_DESTINATION/sbom.spdx.json" <<END
{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document", "predicate": {"name": "a"}}
END
"#;

/// Pushes an image with the generator.
fn generator(registry: &Registry, proxy: &Proxy) -> String {
    let context = Context::busybox("COPY --chmod=755 scan /bin/scan\nENTRYPOINT [\"/bin/scan\"]");
    context.write("scan", SCAN);
    let image = registry.image("generator:1");
    let output = format!("type=image,name={image},push=true");
    let mut build = buildctl_build(&proxy.addr(), &context);
    succeed(build.env("DOCKER_CONFIG", registry.docker_config()).args(["--output", &output]));
    image
}

/// A checkout of this repository at the tag of its version, and the environment of its steps.
#[derive(Debug)]
pub(super) struct Runner {
    directory: tempfile::TempDir,
    env: BTreeMap<String, String>,
}

impl Runner {
    pub(super) fn new() -> Self {
        let hosts = Hosts::shared();
        let mut runner =
            Self { directory: tempfile::tempdir().expect("a directory"), env: BTreeMap::new() };
        for name in ["bin", "temp", "checkout/docs"] {
            fs::create_dir_all(runner.path(name)).expect("made");
        }
        for (name, script) in [("docker", DOCKER), ("helm", HELM), ("cosign", COSIGN), ("az", AZ)] {
            executable(&runner.path("bin").join(name), script);
        }
        runner.check_out();
        // The program in the image is none: the image has tests of its own.
        executable(&runner.path("buildkit-lb"), "one file");
        for (variable, program) in [
            ("TEST_BUILDCTL", "buildctl"),
            ("TEST_BUILDX", "buildx"),
            ("TEST_HELM", "helm"),
            ("TEST_COSIGN", "cosign"),
        ] {
            runner.set(variable, &tool(program).display().to_string());
        }
        let text = |path: PathBuf| path.display().to_string();
        let config = hosts.registry.docker_config();
        for (variable, value) in [
            ("PATH", format!("{}:/usr/bin:/bin", text(runner.path("bin")))),
            ("HOME", text(runner.path(""))),
            ("DOCKER_CONFIG", text(config.to_owned())),
            ("HELM_REGISTRY_CONFIG", text(config.join("config.json"))),
            ("BINARY", text(runner.path("buildkit-lb"))),
            ("SBOM_GENERATOR", hosts.generator.clone()),
            ("COSIGN_PASSWORD", "secret".to_owned()),
        ] {
            runner.set(variable, &value);
        }
        runner.step("cd \"$HOME\" && cosign generate-key-pair", &BTreeMap::new());
        runner
    }

    /// What a release needs of a checkout. The changelog gets the section of the version, and the compiler's profile
    /// counts as made with it.
    fn check_out(&self) {
        let root = Path::new(ROOT);
        let checkout = self.checkout();
        succeed(Command::new(tool("cp")).arg("-r").arg(root.join("deploy")).arg(&checkout));
        fs::copy(root.join("docs/icon.svg"), checkout.join("docs/icon.svg")).expect("copied");
        let changelog = format!("## [{VERSION}] - 2026-01-01\n");
        fs::write(checkout.join("CHANGELOG.md"), changelog).expect("written");
        profile::renew(&checkout);
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn checkout(&self) -> PathBuf {
        self.path("checkout")
    }

    pub(super) fn set(&mut self, variable: &str, value: &str) {
        self.env.insert(variable.to_owned(), value.to_owned());
    }

    pub(super) fn get(&self, variable: &str) -> Option<&String> {
        self.env.get(variable)
    }

    /// Runs the script of a step with the variables `env` of the workflow, apart from those that name hosts and keys
    /// elsewhere. Returns what the script prints.
    pub(super) fn step(&self, script: &str, env: &BTreeMap<String, String>) -> String {
        let hosts = Hosts::shared();
        let mut step = shell(format!("set -e\n{script}"), &[]);
        step.env_clear().envs(env).envs(&self.env);
        step.env("REGISTRY", hosts.registry.host()).env("BUILDKIT_HOST", hosts.proxy.addr());
        step.env("COSIGN", self.path("bin/cosign")).env("COSIGN_KEY", self.path("cosign.key"));
        succeed(step.current_dir(self.checkout()))
    }
}

fn executable(path: &Path, script: &str) {
    fs::write(path, script).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("changed");
}
