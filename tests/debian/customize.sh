#!/bin/sh
# What the Debian of the suites has beyond its packages; run by mmdebstrap with the root as $1, in
# the directory that receives the kernel and its initial RAM filesystem.
set -eu
root=$1

cp "$root"/boot/vmlinuz-* vmlinuz
cp "$root"/boot/initrd.img-* initrd.img

echo debian >"$root/etc/hostname"
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"

# Whatever interface there is asks for an address.
cat >"$root/etc/systemd/network/any.network" <<END
[Match]
Name=en* eth*
[Network]
DHCP=ipv4
END
chroot "$root" systemctl --quiet enable systemd-networkd systemd-resolved

# The suites log in with this key, from inside the same root filesystem.
mkdir -p -m 700 "$root/root/.ssh"
chroot "$root" ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cp "$root/root/.ssh/id_ed25519.pub" "$root/root/.ssh/authorized_keys"

# A disk with the serial number `job` brings a script: it is run when the system is up, speaks
# through the virtio console, and the system powers off after it.
cat >"$root/etc/systemd/system/job.service" <<END
[Unit]
Description=the script on the disk named job
After=multi-user.target systemd-networkd.service ssh.service
ConditionPathExists=/dev/disk/by-id/virtio-job
[Service]
Type=exec
ExecStartPre=mount -o ro /dev/disk/by-id/virtio-job /mnt
ExecStart=sh /mnt/run
StandardOutput=file:/dev/hvc0
StandardError=file:/dev/hvc0
ExecStopPost=systemctl --no-block poweroff
[Install]
WantedBy=graphical.target
END
chroot "$root" systemctl --quiet enable job
