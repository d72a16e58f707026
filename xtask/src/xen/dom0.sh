# The control domain under Debian's Xen, without an init system: the tool stack, then the script that came on a disk,
# then a report to the emulator. Words of the kernel's command line that it knows:
#   xenstored=c  the C xenstored; Debian's first choice is the one in OCaml
#   shell        a shell on the console, not the script
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/xen-4.17/bin HOME=/root TERM=dumb LC_ALL=C
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm /dev/disk/by-id /run/lock /run/xen /run/xenstored /var/log/xen/console /var/lib/xen
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
# The tool stack's hotplug scripts wait for ever in their lock without /dev/stdin.
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
for block in /sys/block/vd*; do
    serial=$(cat "$block/serial")
    if [ -n "$serial" ]; then
        ln -s "/dev/${block##*/}" "/dev/disk/by-id/virtio-$serial"
    fi
done
hostname xen
ip link set lo up

# report CODE: ends the machine by the emulator's report port; Xen sends what it has buffered before.
report() {
    sync
    sleep 0.5
    printf "\\$1" | dd of=/dev/port bs=1 seek=244 conv=notrunc status=none
    /run/busybox poweroff -f
}

mount -t xenfs xenfs /proc/xen
case " $(cat /proc/cmdline) " in
*" xenstored=c "*) xenstored --pid-file /run/xenstored.pid ;;
*) oxenstored --pid-file /run/xenstored.pid ;;
esac
tries=0
until xenstore-read / > /dev/null 2>&1; do
    sleep 0.1
    tries=$((tries + 1))
    if [ $tries -ge 100 ]; then
        echo "dom0: no xenstored"
        report 023
    fi
done
xen-init-dom0
xenconsoled --pid-file=/run/xenconsoled.pid --log=guest
echo "dom0: ready"

mkdir /tmp/files
cd /tmp/files || report 023
/run/busybox cpio -i < /dev/disk/by-id/virtio-xen-script 2> /dev/null
case " $(cat /proc/cmdline) " in
*" shell "*) setsid /run/busybox cttyhack sh ;;
*) sh ./run.sh ;;
esac
status=$?
echo "dom0: exit status $status"
if [ $status -eq 0 ]; then
    report 020
fi
report 021
