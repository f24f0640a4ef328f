# shellcheck shell=bash
# The certificate with which builds connect to the fleet. Its directory has tls.crt, tls.key and ca.crt as cert-manager
# writes them, or cert.pem, key.pem and ca.pem. Without the directory, builds connect without TLS. Sets tls to the flags
# for buildctl, and tls_options to those for a buildx builder. Source this file.
#
#   BUILDKIT_TLS_DIR  default: /run/secrets/buildkit-client, where the pods of the agents mount the Secret buildkit-client

tls=() tls_options=()
tls_dir=${BUILDKIT_TLS_DIR:-/run/secrets/buildkit-client}
if [ -e "$tls_dir/tls.crt" ]; then
    tls_ca=$tls_dir/ca.crt tls_cert=$tls_dir/tls.crt tls_key=$tls_dir/tls.key
else
    tls_ca=$tls_dir/ca.pem tls_cert=$tls_dir/cert.pem tls_key=$tls_dir/key.pem
fi
if [ -e "$tls_cert" ]; then
    tls=(--tlscacert "$tls_ca" --tlscert "$tls_cert" --tlskey "$tls_key")
    tls_options=(--driver-opt "cacert=$tls_ca,cert=$tls_cert,key=$tls_key")
elif [ -n "${BUILDKIT_TLS_DIR:-}" ]; then
    echo "BUILDKIT_TLS_DIR is $tls_dir, which has neither tls.crt nor cert.pem" >&2
    exit 1
fi
