#!/usr/bin/env bash
# Prints what was pushed, and gives its digest to later steps as $(imageDigest). Source this file after a build that
# has written $metadata.

digest=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "${metadata:?}")
echo "pushed ${image:?}@$digest"
echo "##vso[task.setvariable variable=imageDigest]$digest"
