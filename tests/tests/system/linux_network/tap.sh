#!/bin/sh
# A guest on the network of the host's tap interface. `sh tap.sh OWN HOST PORT`: at that port `stream serve` runs.

# check NAME COMMAND...: the command succeeds; what it prints is shown.
check() {
    name=$1
    shift
    if said=$("$@" 2>&1); then
        echo "network: ok: $name: $(echo "$said" | tail -n 1)"
    else
        echo "$said"
        echo "network: FAILED: $name"
        exit 1
    fi
}
is_there() {
    for n in $(seq 60); do
        ping -c 1 -W 1 "$1" && return 0
    done
    return 1
}
segmentation() {
    ethtool -K eth0 tso "$1" && ethtool -k eth0 | grep "^tcp-segmentation-offload: $1"
}

ip address add "$1/24" dev eth0
# A connection does not begin with what an earlier one learned.
echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save
check "the host is there" is_there "$2"
check "TSO on" segmentation on
check "100 MiB to the host" /stream send 100 "$2:$3"
check "100 MiB from the host" /stream get 100 "$2:$3"
check "TSO off" segmentation off
check "100 MiB to the host without TSO" /stream send 100 "$2:$3"
echo "network: all is well"
