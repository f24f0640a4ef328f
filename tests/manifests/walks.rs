//! What pages tell people to type against a cluster works when it is typed, in the order of the page.
//!
//! kubectl and helm are real, and so is the API server. No pod runs, so commands that wait for one are left out. There
//! is no Azure: `az` prints an identifier.

use std::{fs, path::Path, process::Command};

use crate::{
    accepted::further_kinds,
    support::{
        client::{succeed, text},
        kubernetes::Cluster,
        pages::{blocks_of, typed},
        rendered::DEPLOY,
        tools::{shell, tool},
    },
};

/// The pages whose commands are typed. The pages on TLS and on upgrades upgrade the release of the page before.
const WALKS: &[&str] = &[
    "docs/kubernetes/README.md",
    "docs/kubernetes/pod.md",
    "docs/kubernetes/deployment.md",
    "docs/kubernetes/job.md",
    "docs/kubernetes/aks.md",
    "docs/kubernetes/statefulset.md",
    "docs/kubernetes/tls.md",
    "docs/kubernetes/upgrade.md",
    "docs/scaling.md",
    "deploy/azure/README.md",
];

/// The programs of a page. `fresh` makes the namespace of the fleet empty, for each page that installs a fleet.
const PROGRAMS: &str = r#"
real_kubectl=$(type -P kubectl) real_helm=$(type -P helm)
fresh() {
    "$real_helm" uninstall buildkit-lb --namespace buildkit --ignore-not-found --no-hooks >/dev/null
    "$real_kubectl" delete --namespace buildkit --all --wait=false \
        deploy,sts,svc,cm,secret,sa,role,rolebinding,pdb,netpol,pod,job >/dev/null
}
kubectl() {
    case "$*" in
    "create namespace buildkit") fresh ;;
    wait\ * | logs\ * | port-forward\ * | *" --rm "*) ;;
    *) "$real_kubectl" "$@" ;;
    esac
    typed=$((typed + 1))
}
helm() {
    case $1 in
    test) return ;;
    install) fresh ;;
    esac
    local arguments=() argument
    for argument; do
        case $argument in
        # A release in a registry is this chart with the name of its image.
        oci://*) arguments+=(deploy/chart --set image.registry=registry.example) ;;
        REVISION) arguments+=(1) ;;
        # No pod becomes ready.
        --wait) ;;
        *) arguments+=("$argument") ;;
        esac
    done
    # A helm that is compiled for the tests renders for an old cluster by itself.
    [ "$1" != template ] || arguments+=(--kube-version 1.36.3)
    "$real_helm" "${arguments[@]}"
    typed=$((typed + 1))
}
az() { echo identifier; }
curl() { :; }
jq() { echo 4.0.0; }
openssl() { echo 0123456789abcdef0123456789abcdef; }
buildctl() { :; }
kill() { :; }
docker() { :; }
deploy/azure/steps/login.sh() { :; }
deploy/image/build() { :; }
"#;

/// A directory with what a reader of the pages has: the kit, and files of the reader's own.
fn checkout() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let deploy = directory.path().join("deploy");
    fs::create_dir(&deploy).expect("made");
    for part in ["azure", "cert-manager", "chart", "kustomize"] {
        succeed(Command::new(tool("cp")).arg("-r").arg(Path::new(DEPLOY).join(part)).arg(&deploy));
    }
    for (name, content) in [
        ("token", "a"),
        ("tls.crt", "a"),
        ("tls.key", "a"),
        ("ca.crt", "a"),
        ("my-values.yaml", "image: {registry: registry.example}\n"),
    ] {
        fs::write(directory.path().join(name), content).expect("written");
    }
    directory
}

#[test]
fn what_the_pages_tell_to_type_works_against_a_cluster() {
    let cluster = Cluster::bare();
    let server = cluster.server();
    for (name, definition) in further_kinds() {
        let output = server.feed(&["create", "--filename", "-"], &definition);
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"]);
    // cert-manager, KEDA and the teams are there before the fleet.
    for namespace in ["buildkit", "cert-manager", "web"] {
        cluster.namespace(namespace);
    }
    let checkout = checkout();
    let mut count = 0;
    for page in WALKS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
        let typed: Vec<_> = blocks_of(&path).iter().filter_map(typed).collect();
        let script =
            format!("set -eo pipefail\n{PROGRAMS}\n{}\necho typed $typed", typed.join("\n"));
        let mut walk = shell(script, &["kubectl", "helm"]);
        let programs = tool("kubectl").parent().expect("a directory").display().to_string();
        walk.env_clear().env("PATH", format!("{programs}:/usr/bin:/bin"));
        walk.env("HOME", checkout.path()).env("KUBECONFIG", server.kubeconfig());
        walk.env("PASSWORD", "secret");
        let output = walk.current_dir(checkout.path()).output().expect("bash runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{page}: {error}");
        let told = text(&output);
        let last = told.lines().rev().find_map(|line| line.strip_prefix("typed "));
        count += last.and_then(|count| count.parse::<usize>().ok()).expect(page);
    }
    assert!(count >= 30, "only {count} commands were typed");
}
