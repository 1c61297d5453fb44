#!/usr/bin/env bash
# Several hosts with sshd on one Linux machine: each a network + pid + mount + uts namespace with its own $HOME, joined
# by a bridge in a namespace of its own. The addresses exist inside only, with no route out.
#
#   netns_hosts.sh DIRECTORY NUM_HOSTS VIRTUALENV
#
# Needs root, iproute2, util-linux and openssh-server. Host i is 10.77.0.i; root logs in with DIRECTORY/key. Prints
# `ready PREFIX` when all answer (`ip netns exec PREFIX-100` is a machine beside them); ends them all when its standard
# input closes.
set -euo pipefail
W=$1 COUNT=$2 VENV=$3
NET=10.77.0 P=nfold$$ PIDS=()

cleanup() {
  set +e
  for pid in "${PIDS[@]}"; do kill -9 "$pid"; wait "$pid"; done 2> /dev/null  # unshare takes its namespace down
  sleep 0.5
  for i in switch 100 $(seq "$COUNT"); do ip netns del "$P-$i" 2> /dev/null; done
}
trap cleanup EXIT

ip netns add "$P-switch"
ip -n "$P-switch" link add br0 type bridge
ip -n "$P-switch" link set br0 up
for i in 100 $(seq "$COUNT"); do
  ip netns add "$P-$i"
  ip -n "$P-$i" link add eth0 type veth peer name "p$i" netns "$P-switch"
  ip -n "$P-switch" link set "p$i" master br0
  ip -n "$P-switch" link set "p$i" up
  ip -n "$P-$i" addr add "$NET.$i/24" dev eth0
  ip -n "$P-$i" link set lo up
  ip -n "$P-$i" link set eth0 up
  ip -n "$P-$i" route add default dev eth0  # Ray finds its address by the route to a public one
done

mkdir -p "$W"
ssh-keygen -q -t ed25519 -N '' -f "$W/key"
ssh-keygen -q -t ed25519 -N '' -f "$W/hostkey"
cat > "$W/sshd_config" << C
HostKey $W/hostkey
AuthorizedKeysFile $W/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
MaxStartups 100
MaxSessions 100
C
cat > "$W/host.sh" << 'N'
set -e
hostname "host$1"
W=$2 VENV=$3
mkdir -p "$W/n$1" /tmp/ray /run/sshd
mount -t tmpfs -o size=64m tmpfs "$W/n$1"
mkdir "$W/n$1/up" "$W/n$1/work"
mount -t overlay overlay -o "lowerdir=$HOME,upperdir=$W/n$1/up,workdir=$W/n$1/work" "$HOME"
rm -rf "$HOME/.ray" "$HOME/.ssh" "$HOME/.nfold"
mount -t tmpfs tmpfs /tmp/ray
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run/sshd
echo "export PATH=$VENV/bin:\$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0" >> "$HOME/.bashrc"
cd /
exec /usr/sbin/sshd -D -e -f "$W/sshd_config" 2> "$W/sshd$1.log"
N
for i in $(seq "$COUNT"); do
  ip netns exec "$P-$i" unshare --pid --mount --uts --fork --kill-child --mount-proc \
    bash "$W/host.sh" "$i" "$W" "$VENV" > "$W/host$i.log" 2>&1 < /dev/null &
  PIDS+=($!)
done
for i in $(seq "$COUNT"); do
  for try in $(seq 51); do
    [ "$try" = 51 ] && { cat "$W/host$i.log" "$W/sshd$i.log" >&2; exit 1; }
    ip netns exec "$P-100" ssh -i "$W/key" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
      -o LogLevel=ERROR -o ConnectTimeout=2 "root@$NET.$i" true < /dev/null 2> /dev/null && break
    sleep 0.2
  done
done
echo "ready $P"
cat > /dev/null
