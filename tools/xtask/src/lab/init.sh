#!/bin/busybox sh
# PID 1 of the lab's emulated host: mounts, modules, then the agent that runs the command.
# Everything printed here goes to the serial console, which is shown only when the lab fails.
export PATH=/opt/bulkhead/bin:/bin:/sbin HOME=/root TERM=dumb LAB=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
hostname lab
ip link set lo up
while read -r module; do
	insmod "/lib/modules/$module" || echo "lab: $module does not load"
done </lib/modules/load-order
cd /repo
/sbin/lab-agent
sync
poweroff -f
