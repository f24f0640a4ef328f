#!/usr/bin/env bash
# Writes the registry's credentials where buildctl and buildx look for them. Needs no docker.
#
#   REGISTRY                              as contoso.azurecr.io
#   REGISTRY_USERNAME, REGISTRY_PASSWORD  of a registry that is no ACR, or of an ACR token
#
# Without a password the Azure CLI asks for a token: as the service connection of an AzureCLI@2 task,
# else as the workload identity of the agent's pod. ACR's tokens last three hours, so sign in right
# before the build. A push reads the credentials when it needs them, at the end of the build.

set -euo pipefail

: "${REGISTRY:?is not set: the registry, as contoso.azurecr.io}"
: "${AGENT_TEMPDIRECTORY:?is not set: does this run in a pipeline?}"

fail() {
    echo "##vso[task.logissue type=error]$*"
    exit 1
}

workload_identity() {
    [ -n "${AZURE_FEDERATED_TOKEN_FILE:-}" ] || return 0
    ! az account show --output none 2>/dev/null || return 0
    az login --service-principal --username "$AZURE_CLIENT_ID" --tenant "$AZURE_TENANT_ID" \
        --federated-token "$(cat "$AZURE_FEDERATED_TOKEN_FILE")" --allow-no-subscriptions --output none
}

username=${REGISTRY_USERNAME:-}
password=${REGISTRY_PASSWORD:-}
case $password in
# What a pipeline leaves where a variable does not exist.
'$'\(*) fail "REGISTRY_PASSWORD is the text $password: the pipeline has no such variable" ;;
'')
    workload_identity
    # The user that ACR expects with a token.
    username=00000000-0000-0000-0000-000000000000
    password=$(az acr login --name "${REGISTRY%%.*}" --expose-token --query accessToken --output tsv) ||
        fail "no token for $REGISTRY: see the message of az above"
    ;;
*) [ -n "$username" ] || fail "REGISTRY_PASSWORD is set, REGISTRY_USERNAME is not" ;;
esac

auth=$(printf '%s:%s' "$username" "$password" | base64 -w0)
# The agent hides these in the log; a terminal would show them.
if [ -n "${TF_BUILD:-}" ]; then
    echo "##vso[task.setsecret]$password"
    echo "##vso[task.setsecret]$auth"
fi

# The agent empties this directory after the job.
config=$AGENT_TEMPDIRECTORY/docker
umask 077
mkdir -p "$config"
printf '{"auths":{"%s":{"auth":"%s"}}}\n' "$REGISTRY" "$auth" >"$config/config.json"
echo "##vso[task.setvariable variable=DOCKER_CONFIG]$config"
echo "signed in to $REGISTRY"
