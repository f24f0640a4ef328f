#!/usr/bin/env bash
# Writes the registry's credentials to the file that buildctl and buildx read. It needs no docker.
#
#   REGISTRY                              for example contoso.azurecr.io
#   REGISTRY_USERNAME, REGISTRY_PASSWORD  for a registry other than ACR, or for an ACR token
#
# Without a password, an AzureCLI@2 task gets a token by its service connection. The token lasts three hours and is
# needed for the push at the end of the build, so sign in right before the build. Outside such a task, a credential
# helper uses the workload identity of the agent's pod to get a new token at the time of the push, so a build may take
# as long as it needs.

set -euo pipefail

: "${REGISTRY:?is not set: the registry, for example contoso.azurecr.io}"
: "${AGENT_TEMPDIRECTORY:?is not set: does this run in a pipeline?}"

fail() {
    echo "##vso[task.logissue type=error]$*"
    exit 1
}

readonly HELPER=docker-credential-acr-identity

# The agent empties this directory after each job.
config=$AGENT_TEMPDIRECTORY/docker

# signed_in JSON : writes the client's configuration.
signed_in() {
    umask 077
    mkdir -p "$config"
    printf '%s\n' "$1" >"$config/config.json"
    echo "##vso[task.setvariable variable=DOCKER_CONFIG]$config"
    echo "signed in to $REGISTRY"
}

# Whether the pod has an identity, and no task has signed in for this step.
by_identity() {
    [ -n "${AZURE_FEDERATED_TOKEN_FILE:-}" ] && ! az account show --output none 2>/dev/null
}

username=${REGISTRY_USERNAME:-}
password=${REGISTRY_PASSWORD:-}
case $password in
# A pipeline leaves this text if a variable does not exist.
'$'\(*) fail "REGISTRY_PASSWORD is the text $password: the pipeline has no such variable" ;;
'')
    if by_identity; then
        command -v "$HELPER" >/dev/null || fail "$HELPER is not on the path: the agent's image has it"
        # If the helper gets no token now, it gets none at the push either.
        told=$("$HELPER" get <<<"$REGISTRY") || fail "$told"
        signed_in "{\"credHelpers\":{\"$REGISTRY\":\"${HELPER#docker-credential-}\"}}"
        exit
    fi
    # The user name that ACR expects with a token.
    username=00000000-0000-0000-0000-000000000000
    password=$(az acr login --name "${REGISTRY%%.*}" --expose-token --query accessToken --output tsv) ||
        fail "no token for $REGISTRY: see the message of az above"
    ;;
*) [ -n "$username" ] || fail "REGISTRY_PASSWORD is set, REGISTRY_USERNAME is not" ;;
esac

auth=$(printf '%s:%s' "$username" "$password" | base64 -w0)
# The agent hides these values in its log. A terminal would show them.
if [ -n "${TF_BUILD:-}" ]; then
    echo "##vso[task.setsecret]$password"
    echo "##vso[task.setsecret]$auth"
fi

signed_in "{\"auths\":{\"$REGISTRY\":{\"auth\":\"$auth\"}}}"
