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

# Every network interface that the toolstack gave asks for an address; what udhcpc calls with the answer is this script.
mkdir -p /run
mount -t tmpfs tmpfs /run
cat > /bin/leased <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
for gateway in $router; do
    ip route add default via "$gateway" dev "$interface"
done
{
    [ -z "$domain" ] || echo "search $domain"
    for server in $dns; do
        echo "nameserver $server"
    done
} > /run/resolv.conf
END
chmod +x /bin/leased
ln -s /run/resolv.conf /etc/resolv.conf
tries=0
for device in /sys/bus/xen/devices/vif-*; do
    while [ -e "$device" ] && [ ! -d "$device/net" ] && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    for interface in "$device"/net/*; do
        [ -e "$interface" ] || continue
        name=${interface##*/}
        ip link set dev "$name" up
        # Four questions, a second apart: a bridge may be without a DHCP server.
        udhcpc -q -n -t 4 -T 1 -i "$name" -s /bin/leased
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
        if [ -e /run/resolv.conf ]; then
            # The system's own networkd keeps the lease, where there is one.
            units=/run/systemd/system/multi-user.target.wants
            mkdir -p "$units" /run/systemd/network
            printf '[Match]\nDriver=vif\n\n[Network]\nDHCP=ipv4\n\n[DHCPv4]\nClientIdentifier=mac\n' \
                > /run/systemd/network/80-vif.network
            ln -s /lib/systemd/system/systemd-networkd.service "$units"
            if [ -e /root/etc/resolv.conf ] || : > /root/etc/resolv.conf; then
                mount --bind /run/resolv.conf /root/etc/resolv.conf
            fi
        fi
        mount --move /run /root/run
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
