# create NAME SECONDS: creates NAME.cfg's domain and leaves a process that ends when it has shut down.
create() {
    timeout "$2" xl create -F "$1.cfg" > "$1.xl" 2>&1 < /dev/null &
    last=$!
    until xl domid "$1" > /dev/null 2>&1; do
        if ! kill -0 $last 2> /dev/null; then
            return
        fi
        sleep 0.2
    done
}

# tell NAME: prints its console and what xl said, and ends it.
tell() {
    log="/var/log/xen/console/guest-$1.log"
    if [ -e "$log" ]; then
        sed "s/^/$1| /" "$log"
        echo
    fi
    sed "s/^/$1! /" "$1.xl"
    xl destroy "$1" 2> /dev/null
}

# quick_vifs: Debian's script for a new vif runs many processes under a lock, which on a slow machine last longer
# than the tool stack waits. What they come to, where the bridge is named and there is no packet filter, is this.
quick_vifs() {
    cat > /etc/xen/scripts/vif-bridge << 'END'
#!/bin/sh
if [ "$1" = online ]; then
    bridge=$(xenstore-read "$XENBUS_PATH/bridge")
    mtu=$(cat "/sys/class/net/$bridge/mtu")
    ip link set "$vif" address fe:ff:ff:ff:ff:ff mtu "$mtu" &&
        ip link set "$vif" master "$bridge" && ip link set "$vif" up &&
        xenstore-write "$XENBUS_PATH/hotplug-status" connected
fi
END
}

# bridge NAME: a bridge for vifs, which forwards at once, whose frames may be as long as there are any, and on which the
# control domain says nothing itself.
bridge() {
    for device in all default; do
        if [ -e "/proc/sys/net/ipv6/conf/$device" ]; then
            echo 1 > "/proc/sys/net/ipv6/conf/$device/disable_ipv6"
        fi
    done
    ip link add "$1" type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    ip link set "$1" mtu 65000
    ip link set "$1" up
}
