#!/usr/bin/env bash
# Tells what was pushed, and gives its digest to the steps that follow as $(imageDigest). To be sourced
# after a build that wrote $metadata.

digest=$(sed -n 's/.*"containerimage.digest": *"\(sha256:[0-9a-f]*\)".*/\1/p' "${metadata:?}")
echo "pushed ${image:?}@$digest"
echo "##vso[task.setvariable variable=imageDigest]$digest"
