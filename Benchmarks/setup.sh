#!/bin/sh
# Installs the peers that the benchmark compares with, as far as Debian has them, and a C compiler.
# No service is started: a policy-rc.d that refuses is in place while dpkg runs.
set -eu

policy=/usr/sbin/policy-rc.d
placed=no
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    placed=yes
fi
cleanup() {
    if [ "$placed" = yes ]; then rm -f "$policy"; fi
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP

export DEBIAN_FRONTEND=noninteractive
apt-get -y -o DPkg::Lock::Timeout=300 install --no-install-recommends \
    gcc libc6-dev make python3 util-linux iproute2 \
    haproxy nginx-light libnginx-mod-stream systemd

# Where systemd is PID 1 the packages have also enabled their services for the next boot.
if [ -d /run/systemd/system ]; then
    systemctl disable haproxy.service nginx.service
fi

haproxy -v | head -n 1
nginx -v
/lib/systemd/systemd-socket-activate --version 2>/dev/null | head -n 1 ||
    systemd-socket-activate --version | head -n 1
