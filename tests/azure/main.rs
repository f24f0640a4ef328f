//! The Azure kit works as documented: the steps of its pipelines build, push and cache through the proxy, run as an
//! agent runs them, and its agent starts and ends in order.
//!
//! The registry, the daemons and the clients are real. There is no Azure in a test: `az` is a short script that prints
//! a token, `curl` is one that answers for Entra and ACR, and scripts replace the agent's programs, which can talk to
//! Azure DevOps only.

mod agent;
mod login;
mod names;
mod pipelines;
mod pods;
mod readme;
#[path = "../support/mod.rs"]
mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::OnceLock};

use serde_json::Value;
use support::{buildkitd::Buildkitd, registry::Registry};

const KIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/azure");

/// Where the agent's image has the steps.
const STEPS: &str = "/opt/buildkit-lb/steps";

/// ACR's user name for clients that have a token.
const USER: &str = "00000000-0000-0000-0000-000000000000";

/// Answers the calls for a workload identity: Entra with an access token, ACR with a token of its own. ACR's token is
/// another one each time, and from then on the only one that the registry takes for `$USERS`.
const CURL: &str = r#"#!/bin/sh
for argument; do
    case $argument in
    client_assertion@*) assertion=$(cat "${argument#*@}") ;;
    scope=*) scope=${argument#*=} ;;
    access_token=*) access=${argument#*=} ;;
    esac
    url=$argument
done
case $url in
https://login.microsoftonline.com/tenant/oauth2/v2.0/token)
    [ "$assertion" = federated ] || { echo "AADSTS700016: who?"; exit 22; }
    printf '{"token_type": "Bearer",\n "expires_in": 3599, "access_token": "entra %s"}' "$scope" ;;
https://*/oauth2/exchange)
    [ "$access" = "entra https://containerregistry.azure.net/.default" ] || exit 22
    token=$(mktemp -u XXXXXXXX)
    htpasswd -Bbc "$USERS" 00000000-0000-0000-0000-000000000000 "$token" 2>/dev/null
    echo exchanged >>"$HOME/exchanges"
    printf '{"refresh_token":"%s"}' "$token" ;;
*) echo "curl: $*" >&2; exit 2 ;;
esac
"#;

/// Three daemons: one to compare with, and two that are behind every proxy.
fn fleet() -> &'static [Buildkitd] {
    static FLEET: OnceLock<Vec<Buildkitd>> = OnceLock::new();
    FLEET.get_or_init(|| Buildkitd::fleet(3))
}

fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| Registry::start_for(USER, "token"))
}

fn executable(path: &Path, script: &str) {
    fs::write(path, script).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("changed");
}

/// The documents of one of the kit's YAML files.
fn yaml(name: &str) -> Vec<Value> {
    let text = fs::read_to_string(format!("{KIT}/{name}")).expect("a file");
    serde_saphyr::from_multiple(&text).expect(name)
}
