#!/usr/bin/env bash
# Builds and pushes an image with buildx and its remote driver, without docker and without a Docker daemon. The
# variables are those of build-buildctl.sh. Arguments go to `buildx build`.
#
# buildx reads the project's address from the git remote of the checkout, unless BUILDX_GIT_INFO=0. The fleet knows
# the project by this address, because every project is checked out to the same path.

set -euo pipefail
# shellcheck source=deploy/azure/steps/names.sh
. "$(dirname "${BASH_SOURCE[0]}")/names.sh"
# shellcheck source=deploy/azure/steps/tls.sh
. "$(dirname "${BASH_SOURCE[0]}")/tls.sh"

: "${BUILDKIT_ADDR:?is not set: the fleet, as tcp://buildkit-lb.build.svc:1234}"
export DOCKER_CONFIG=${DOCKER_CONFIG:-$AGENT_TEMPDIRECTORY/docker}
# A builder for this job only: the builders of another job may point elsewhere.
export BUILDX_CONFIG=$AGENT_TEMPDIRECTORY/buildx
context=${BUILD_CONTEXT:-${BUILD_SOURCESDIRECTORY:-$PWD}}
metadata=$AGENT_TEMPDIRECTORY/image.json

args=(
    --file "${DOCKERFILE:-$context/Dockerfile}"
    --tag "$image" --push
    --metadata-file "$metadata"
)
for from in "${cache_from[@]}"; do args+=(--cache-from "$from"); done
for to in "${cache_to[@]}"; do args+=(--cache-to "$to"); done

buildx inspect fleet >/dev/null 2>&1 || \
    buildx create --name fleet --driver remote "${tls_options[@]}" "$BUILDKIT_ADDR"
buildx build --builder fleet --progress=plain "${args[@]}" "$@" "$context"

# shellcheck source=deploy/azure/steps/result.sh
. "$(dirname "${BASH_SOURCE[0]}")/result.sh"
