#!/bin/sh
# Fetches without end over the one interface that there is, and says when an interface that came has carried an answer, and when
# there is none.
ip -4 address flush dev eth0
carries=
while :; do
    set -- /sys/class/net/eth*
    if [ ! -e "$1" ]; then
        [ -z "$carries" ] || echo "hotplug: none is left"
        carries=
        sleep 0.1
        continue
    fi
    for net in /sys/class/net/eth*; do
        name=${net##*/}
        # An interface that comes has a number that none had before.
        number=$(cat "$net/ifindex" 2> /dev/null) || continue
        if [ "$number" = "$carries" ]; then
            timeout 2 wget -q -O /dev/null http://10.88.0.2/bytes/3000000
        elif ip address replace 10.88.0.50/24 dev "$name" && ip link set dev "$name" up &&
            timeout 5 wget -q -O /dev/null http://10.88.0.2/bytes/100000; then
            carries=$number
            echo "hotplug: $name carries, number $number"
        fi
    done 2> /dev/null
done
