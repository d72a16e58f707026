#!/bin/busybox sh
# The first program of the control domain under Debian's Xen: modules, then the root image.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module"
done < /modules/order

# disk SERIAL: the device with that serial number.
disk() {
    for block in /sys/block/vd*; do
        if [ "$(cat "$block/serial")" = "$1" ]; then
            echo "/dev/${block##*/}"
        fi
    done
}
tries=0
while [ -z "$(disk xen-root)" ] && [ $tries -lt 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
# An emulator's snapshot takes what is written.
if ! mount -t ext4 -o noatime "$(disk xen-root)" /root; then
    echo "cannot mount the root image"
    poweroff -f
fi
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
mount -t tmpfs run /root/run
cp /dom0.sh /bin/busybox /root/run/
exec switch_root /root /bin/sh /run/dom0.sh
