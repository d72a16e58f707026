#!/bin/busybox sh
# The first program of Debian's kernel as a guest. Words of the kernel's command line that it knows:
#   run=COMMAND  run it (the rest of the line, or what stands in double quotes) and print its status
#   shell        then stay with a shell on the console
#   root=DEVICE  go on with that disk's own system instead of all this
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

# What the kernel runs when the toolstack asks it to go down.
mkdir -p /sbin
for how in poweroff reboot; do
    printf '#!/bin/sh\nsync\nexec /bin/%s -f\n' $how > /sbin/$how
    chmod +x /sbin/$how
done

while read -r module; do
    insmod "/modules/$module"
done < /modules/order

# Every disk that the toolstack gave, for ten seconds at most.
tries=0
for device in /sys/bus/xen/devices/vbd-*; do
    while [ -e "$device" ] && [ ! -d "$device/block" ] && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
done

line=$(cat /proc/cmdline)
command= root= shell=
case " $line" in
*" run="*)
    command=" $line"
    command=${command#* run=}
    line=" $line"
    line=${line%% run=*}
    case $command in
    '"'*)
        command=${command#'"'}
        line="$line ${command#*'"'}"
        command=${command%%'"'*}
        ;;
    esac
    ;;
esac
for word in $line; do
    case $word in
    root=*) root=${word#root=} ;;
    shell) shell=yes ;;
    esac
done

if [ -n "$root" ]; then
    if mount -t ext4 "$root" /root; then
        mount --move /dev /root/dev
        mount --move /proc /root/proc
        mount --move /sys /root/sys
        exec switch_root /root /sbin/init
    fi
    echo "cannot mount $root; a shell instead"
    shell=yes
fi

dmesg
echo "userspace reached: Linux $(uname -r), $(cut -d' ' -f1 /proc/uptime) s after its start"
if [ -n "$command" ]; then
    echo "run: $command"
    sh -c "$command"
    echo "run: exit status $?"
fi
if [ -n "$shell" ]; then
    setsid cttyhack sh
fi
sync
poweroff -f
