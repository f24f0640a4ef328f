#!/usr/bin/env bash
# Builds and pushes an image with buildctl. Arguments go to `buildctl build`.
#
#   BUILDKIT_ADDR     the fleet, for example tcp://buildkit-lb.build.svc:1234
#   BUILDKIT_TLS_DIR  see tls.sh
#   REGISTRY          for example contoso.azurecr.io; sign in with login.sh first
#   IMAGE             repository in the registry; default: PROJECT/REPOSITORY, by the names in Azure DevOps
#   TAG               default: the run's id
#   BUILD_CONTEXT     default: the checkout
#   DOCKERFILE        default: Dockerfile in the context
#   DEFAULT_BRANCH    the branch from whose cache a new branch starts; default: main
#   CACHE_REPOSITORY  default: cache/IMAGE

set -euo pipefail
# shellcheck source=deploy/azure/steps/names.sh
. "$(dirname "${BASH_SOURCE[0]}")/names.sh"
# shellcheck source=deploy/azure/steps/tls.sh
. "$(dirname "${BASH_SOURCE[0]}")/tls.sh"

: "${BUILDKIT_ADDR:?is not set: the fleet, as tcp://buildkit-lb.build.svc:1234}"
export DOCKER_CONFIG=${DOCKER_CONFIG:-$AGENT_TEMPDIRECTORY/docker}
checkout=${BUILD_SOURCESDIRECTORY:-$PWD}
context=${BUILD_CONTEXT:-$checkout}
dockerfile=${DOCKERFILE:-$context/Dockerfile}
metadata=$AGENT_TEMPDIRECTORY/image.json

in_checkout() { realpath --relative-to="$checkout" "$1"; }

args=(
    --local "context=$context"
    --local "dockerfile=$(dirname "$dockerfile")" --opt "filename=$(basename "$dockerfile")"
    --output "type=image,name=$image,push=true"
    --metadata-file "$metadata"
)
# buildx reads this from the checkout by itself. It tells the fleet which project is built, and says in the image's
# provenance where the image comes from.
if [ -n "${BUILD_REPOSITORY_URI:-}" ]; then
    args+=(
        --opt "vcs:source=$BUILD_REPOSITORY_URI" --opt "vcs:revision=${BUILD_SOURCEVERSION:-}"
        --opt "vcs:localdir:context=$(in_checkout "$context")"
        --opt "vcs:localdir:dockerfile=$(in_checkout "$(dirname "$dockerfile")")"
    )
fi
for from in "${cache_from[@]}"; do args+=(--import-cache "$from"); done
for to in "${cache_to[@]}"; do args+=(--export-cache "$to"); done

buildctl --addr "$BUILDKIT_ADDR" "${tls[@]}" build --progress=plain --frontend=dockerfile.v0 "${args[@]}" "$@"

# shellcheck source=deploy/azure/steps/result.sh
. "$(dirname "${BASH_SOURCE[0]}")/result.sh"
