#!/usr/bin/env bash
# Brings the real clients and servers that the end-to-end tests and the benchmarks drive. Does nothing when all are there.
# With the argument `full` also what builds the container image, and the RADOS gateway of Ceph, which is only unpacked.
set -euo pipefail
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# runc is a dependency of containerd: dockerd does not start without it.
commands=(dockerd docker htpasswd openssl containerd ctr runc skopeo docker-registry nginx wrk promtool redis-server pgrep systemd-analyze mandoc groff jq chromium podman ip iptables)
packages=(docker.io apache2-utils openssl containerd skopeo docker-registry nginx-light wrk prometheus redis-server procps systemd mandoc groff-base jq chromium fonts-dejavu-core podman iproute2 iptables)
if [ "${1:-}" = full ]; then
    commands+=(buildah debootstrap pipx)
    packages+=(buildah debootstrap pipx)
fi
CEPH_ROOT=${CEPH_ROOT:-/opt/registry-mirror-ceph}
readonly commands packages CEPH_ROOT POLICY=/usr/sbin/policy-rc.d

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

# Unpacks the gateway, a monitor and a store with what they need: installed, they would bring services and users.
unpack_ceph() {
    local place
    place=$(mktemp -d)
    chmod 755 "$place"
    # shellcheck disable=SC2016
    (cd "$place" && bounded 600 sh -c 'apt-get -qq download $(apt-get -s install --no-install-recommends radosgw ceph-mon ceph-osd |
        sed -n "s/^Inst \([^ ]*\).*/\1/p")')
    rm -rf "$CEPH_ROOT.new"
    mkdir -p "$CEPH_ROOT.new"
    for package in "$place"/*.deb; do
        dpkg -x "$package" "$CEPH_ROOT.new"
    done
    rm -rf "$place"
    mv "$CEPH_ROOT.new" "$CEPH_ROOT"
}

lacking=$(missing)
lacks_ceph=$([ "${1:-}" = full ] && [ ! -e "$CEPH_ROOT/usr/bin/radosgw" ] && echo ceph || true)
if [ -z "$lacking$lacks_ceph" ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "install.sh: missing: $lacking$lacks_ceph. Run it as root, or: apt-get install --no-install-recommends ${packages[*]}" >&2
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
if [ -n "$lacks_ceph" ]; then
    unpack_ceph
fi

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "install.sh: still missing after the installation: ${lacking% }" >&2
    exit 1
fi
