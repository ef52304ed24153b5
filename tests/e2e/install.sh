#!/usr/bin/env bash
# Brings the real clients and servers that the end-to-end tests and the benchmarks drive. Does nothing when all are there.
# With the argument `full` also what builds the container image.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# runc is a dependency of containerd: dockerd does not start without it.
commands=(dockerd docker htpasswd openssl containerd ctr runc skopeo docker-registry nginx wrk promtool redis-server pgrep systemd-analyze mandoc groff jq chromium podman)
packages=(docker.io apache2-utils openssl containerd skopeo docker-registry nginx-light wrk prometheus redis-server procps systemd mandoc groff-base jq chromium fonts-dejavu-core podman)
if [ "${1:-}" = full ]; then
    commands+=(buildah debootstrap pipx)
    packages+=(buildah debootstrap pipx)
fi
readonly commands packages POLICY=/usr/sbin/policy-rc.d

missing() {
    local name
    for name in "${commands[@]}"; do
        command -v "$name" >/dev/null || printf '%s ' "$name"
    done
}

# Packages start their services when they are installed; the tests bring up their own.
forbid_services() {
    if [ ! -e "$POLICY" ]; then
        trap 'rm -f "$POLICY"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$POLICY"
        chmod 755 "$POLICY"
    fi
}

# bounded SECONDS COMMAND...: within the time, or once more after a pause; its output only when both failed.
bounded() {
    local seconds=$1 output
    shift
    for pause in 5 0; do
        if output=$(timeout --kill-after=10 "$seconds" "$@" 2>&1 </dev/null); then
            return 0
        fi
        sleep "$pause"
    done
    printf '%s\n%s\n' "install.sh: failed twice: $*" "$output" >&2
    return 1
}

lacking=$(missing)
if [ -z "$lacking" ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: missing: ${lacking% }. Run it as root, or: apt-get install --no-install-recommends ${packages[*]}" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "install.sh: missing: ${lacking% }, and there is no apt-get here to bring them" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
forbid_services
bounded 180 apt-get -qq -o Acquire::Retries=2 -o DPkg::Lock::Timeout=60 update
bounded 600 apt-get -qq -y -o Acquire::Retries=2 -o DPkg::Lock::Timeout=60 install --no-install-recommends "${packages[@]}"

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "install.sh: still missing after the installation: ${lacking% }" >&2
    exit 1
fi
