#!/usr/bin/env bash
# The names of images and caches, made from the variables of Azure Pipelines. Source this file.

# shellcheck disable=SC2034  # the names are for the script that sources this one

# tag_of TEXT: prints a valid tag. If the text is not valid, it is changed and gets a part of its checksum, so that
# two branches never share a tag.
tag_of() {
    local LC_ALL=C tag
    tag=$(printf %s "$1" | tr -c 'A-Za-z0-9._-' - | sed 's/^[.-]*//' | cut -c1-100)
    if [ -z "$tag" ] || [ "$tag" != "$1" ]; then
        tag=${tag:-x}-$(printf %s "$1" | sha256sum | cut -c1-8)
    fi
    printf '%s\n' "$tag"
}

# repository_of TEXT: prints a valid repository name, in lower case and with single separators inside each part.
repository_of() {
    local LC_ALL=C name
    name=$(printf %s "$1" | tr 'A-Z\n' 'a-z-' | sed -E '
        s/[^a-z0-9._/-]+/-/g
        s/[._-]{2,}/-/g
        s#[._-]*/[/._-]*#/#g
        s#^[/._-]+##
        s#[/._-]+$##')
    printf '%s\n' "${name:-x}"
}

# The whole branch: BUILD_SOURCEBRANCHNAME is only the last part, which a/fix and b/fix share.
branch_of_run() {
    local branch=${SYSTEM_PULLREQUEST_SOURCEBRANCH:-${BUILD_SOURCEBRANCH:-${BUILD_SOURCEBRANCHNAME:-}}}
    : "${branch:?BUILD_SOURCEBRANCH is not set: does this run in a pipeline?}"
    branch=${branch#refs/heads/}
    printf '%s\n' "${branch#refs/}"
}

# The cache from which a branch starts that has no cache of its own yet.
parent_branch() {
    local branch=${SYSTEM_PULLREQUEST_TARGETBRANCH:-${DEFAULT_BRANCH:-main}}
    printf '%s\n' "${branch#refs/heads/}"
}

: "${REGISTRY:?is not set: the registry, as contoso.azurecr.io}"

# The name of a repository is unique only within its project: many projects have a `web`.
if [ -z "${IMAGE:-}" ]; then
    : "${SYSTEM_TEAMPROJECT:?is not set, nor is IMAGE}" "${BUILD_REPOSITORY_NAME:?is not set, nor is IMAGE}"
    IMAGE=$SYSTEM_TEAMPROJECT/$BUILD_REPOSITORY_NAME
fi
repository=$(repository_of "$IMAGE")
branch=$(branch_of_run)
image=$REGISTRY/$repository:$(tag_of "${TAG:-${BUILD_BUILDID:?is not set, nor is TAG}}")

cache=$REGISTRY/${CACHE_REPOSITORY:-cache/$repository}
cache_from=("type=registry,ref=$cache:$(tag_of "$branch")")
if [ "$(parent_branch)" != "$branch" ]; then
    cache_from+=("type=registry,ref=$cache:$(tag_of "$(parent_branch)")")
fi
# One manifest instead of an index of layers: registries store and clean it like an image. If the cache cannot be
# pushed, the next build takes longer, and this build must not fail.
cache_to=("type=registry,ref=$cache:$(tag_of "$branch"),mode=max,image-manifest=true,oci-mediatypes=true,ignore-error=true")
# Builds of others must not use what the pull request of a fork has built.
if [ "${SYSTEM_PULLREQUEST_ISFORK:-False}" = True ]; then cache_to=(); fi
