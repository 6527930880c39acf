#!/bin/busybox sh
# First in the partition: what every Linux does for itself, and then the agent.
set -e
export PATH=/usr/bin:/bin
bb=/bin/busybox
$bb mkdir -p /usr /workspace /etc
$bb mount -t virtiofs usr /usr
$bb mount -t virtiofs workspace /workspace
for directory in lib lib64; do [ -e /$directory ] || $bb ln -s usr/$directory /$directory; done
$bb ip link set lo up
$bb ip address add 10.0.2.15/24 dev eth0
$bb ip link set eth0 up
$bb ip route add default via 10.0.2.2
echo 'nameserver 10.0.2.3' >/etc/resolv.conf
exec /usr/bin/python3 /agent/agent.py
