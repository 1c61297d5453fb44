#!/usr/bin/env bash
# Puts Debian's prometheus binary at $1. Nothing is installed on the system and no service is started: the package is
# downloaded and unpacked with package lists of its own, so neither root nor an earlier `apt-get update` is needed.
set -euo pipefail
target=$(realpath -m "$(dirname "$1")")/$(basename "$1")  # where it is a link, the link
if command -v prometheus > /dev/null; then
    ln -sf "$(command -v prometheus)" "$target"
    exit 0
fi
if ! command -v apt-get > /dev/null; then
    echo "the tests need a prometheus binary: install it with your package manager, then run make test again" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
apt=(apt-get -qq -o "Dir::State::Lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
(cd "$work" && "${apt[@]}" download prometheus)
dpkg -x "$work"/prometheus_*.deb "$work/unpacked"
install -m 755 "$work/unpacked/usr/bin/prometheus" "$target"
