#!/bin/sh
# The guest that tries everything. `sh main.sh PORT`: at that port of the host `stream serve` runs, as in the other guest at 7000.
PEER=10.98.0.2 LONG=10.99.0.2 HOST=10.0.2.2
PEER6=fe80::216:3eff:fe00:21 LONG6=fe80::216:3eff:fe00:22 DOM0=fe80::16:3eff:fe00:1

fail() {
    echo "network: FAILED: $*"
    exit 1
}
# check NAME COMMAND...: the command succeeds; what it prints is shown.
check() {
    name=$1
    shift
    begun=$(cut -d' ' -f1 /proc/uptime)
    if said=$("$@" 2>&1); then
        echo "network: ok: $name ($begun s): $(echo "$said" | tail -n 1)"
    else
        echo "$said"
        fail "$name"
    fi
}
all_answered() {
    "$@" | grep -E "packets transmitted|round-trip" | tr '\n' ' ' | grep " 0% packet loss"
}
has() {
    file=$1
    shift
    for line in "$@"; do
        grep -qE "^$line" "$file" || { cat "$file"; echo "no line: $line"; return 1; }
    done
}

# What Debian's frontend says it can do, of what our backend offers.
offloads() {
    ethtool -k eth0 > /tmp/k || return 1
    has /tmp/k "rx-checksumming: on" "tx-checksumming: on" "scatter-gather: on" "tcp-segmentation-offload: on" \
        ".*tx-tcp-segmentation: on" ".*tx-tcp6-segmentation: on" ".*tx-checksum-ipv4: on" ".*tx-checksum-ipv6: on" &&
        ethtool -i eth0 | grep "driver: vif" && echo "rx, tx, sg, tso, tso6"
}

count() {
    cat "/sys/class/net/$1/statistics/tx_$2"
}
# average INTERFACE [-]BYTES ADDRESS: runs TCP for two seconds; a packet, acknowledgements included, has on the average more
# bytes than that, or with a minus at most so many.
average() {
    packets=$(count "$1" packets) bytes=$(count "$1" bytes)
    tcp "$3" > /tmp/average || return 1
    packets=$(($(count "$1" packets) - packets)) bytes=$(($(count "$1" bytes) - bytes))
    echo "$((bytes / packets)) bytes a packet, $(tail -n 1 /tmp/average)"
    case $2 in
    -*) [ $((bytes / packets)) -le ${2#-} ] ;;
    *) [ $((bytes / packets)) -gt "$2" ] ;;
    esac
}
tcp() {
    iperf3 -f m -t 2 -c "$@" > /tmp/tcp || { cat /tmp/tcp; return 1; }
    grep receiver /tmp/tcp
}
# IPv4 packets that this guest has sent, each fragment one. Of a datagram in fragments the datagram itself is none.
sent() {
    awk '$1 == "Ip:" && $2 != "Forwarding" { print $11 - $18 + $20 }' /proc/net/snmp
}
# What the other guest says: IPv4 packets that reached that guest, and datagrams that its sockets had no room for.
arrived() {
    nc -w 20 $PEER 7001 < /dev/null > /tmp/peer
    awk '$1 == "Ip:" && $2 != "Forwarding" { ip = $4 } $1 == "Udp:" && $2 != "InDatagrams" { udp = $6 } END { print ip, udp }' /tmp/peer
}
# udp ADDRESS BYTES: three seconds of 10 Mbit/s. What the receiving socket has no room for, the other guest drops by itself. Of the
# rest at most 3 % is lost on the way: a receiver that does not run for long has its ring full.
udp() {
    out=$(sent) in=$(arrived)
    iperf3 -f m -u -b 10M -w 2M -l "$2" -t 3 -c "$1" > /tmp/udp || { cat /tmp/udp; return 1; }
    out=$(($(sent) - out)) now=$(arrived)
    full=$((${now#* } - ${in#* })) in=$((${now% *} - ${in% *}))
    counts=$(sed -n 's|.* \([0-9]*\)/\([0-9]*\) (.*receiver.*|\1 \2|p' /tmp/udp)
    lost=${counts% *} all=${counts#* }
    echo "$lost of $all lost, $full in the full socket; $out packets sent, $in arrived"
    [ "$all" -gt 100 ] && [ $(((lost - full) * 100)) -le $((all * 3)) ]
}
segmentation() {
    ethtool -K "$1" tso "$2" && ethtool -k "$1" | grep "^tcp-segmentation-offload: $2"
}

# Beside what DHCP gave to the first interface, addresses that are known beforehand.
ip -4 address flush dev eth1
ip address add 10.99.0.1/24 dev eth1
ip address add 10.98.0.1/24 dev eth0
for setting in arp_ignore=1 arp_announce=2; do
    echo ${setting#*=} > /proc/sys/net/ipv4/conf/all/${setting%=*}
done

# Sockets may have buffers that hold what comes while a guest does not run.
echo 4194304 | tee /proc/sys/net/core/rmem_max > /proc/sys/net/core/wmem_max
# A connection does not begin with what an earlier one learned.
echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save

# The other guest started at the same time.
peer_is_ready() {
    for n in $(seq 120); do
        nc -w 1 $PEER 7000 < /dev/null > /dev/null 2>&1 && return 0
        sleep 1
    done
    return 1
}

check "DHCP" sh -c "ip -4 -o address show dev eth0 | grep -o 'inet 10.88.0.[0-9/]*'"
check "a name" sh -c "nslookup peer.internal | grep -A 1 peer.internal | tail -n 1"
check "offloads" offloads
check "ping dom0" all_answered ping -c 10 -i 0.1 10.88.0.1
check "the other guest is there" peer_is_ready
check "ping the other guest" all_answered ping -c 10 -i 0.1 $PEER
check "ping the other guest, fragments" all_answered ping -c 5 -i 0.2 -s 8000 $PEER
check "ping the host side" all_answered ping -c 5 -i 0.2 $HOST
check "ping dom0, IPv6" all_answered ping -6 -c 5 -i 0.2 $DOM0%eth0
check "ping the other guest, IPv6" all_answered ping -6 -c 5 -i 0.2 $PEER6%eth0
check "TCP, IPv6" tcp $PEER6%eth0 -6
check "TCP" tcp $PEER
check "TCP, back" tcp $PEER -R
check "TCP, four at a time" tcp $PEER -P 4
check "UDP" udp $PEER 1400
check "UDP, fragments" udp $PEER 8000

check "TSO on" segmentation eth0 on
check "TCP with TSO" average eth0 2000 $PEER
check "TSO off" segmentation eth0 off
check "TCP without TSO" average eth0 -1514 $PEER
check "TSO on again" segmentation eth0 on
check "no checksums" ethtool -K eth0 tx off
check "TCP without checksums" tcp $PEER
check "checksums" ethtool -K eth0 tx on tso on

check "MTU 9000" sh -c "ip link set dev eth1 mtu 9000 && ip link show dev eth1 | grep 'mtu 9000'"
check "ping, 9000 bytes" all_answered ping -c 5 -i 0.2 -s 8972 $LONG
check "ping, 9000 bytes, IPv6" all_answered ping -6 -c 5 -i 0.2 -s 8952 $LONG6%eth1
check "TCP at 9000 with TSO" average eth1 9014 $LONG
check "TSO off at 9000" segmentation eth1 off
check "TCP at 9000 without TSO" average eth1 4000 $LONG
check "UDP at 9000" udp $LONG 8900

check "to the other guest at 9000" /stream send 40 $LONG:7000
check "to the other guest, IPv6" /stream send 40 "[$PEER6%$(cat /sys/class/net/eth0/ifindex)]:7000"
check "200 MiB to the other guest" /stream send 200 $PEER:7000
check "200 MiB from the other guest" /stream get 200 $PEER:7000
check "200 MiB to the host" /stream send 200 $HOST:"$1"
check "200 MiB from the host" /stream get 200 $HOST:"$1"
echo "network: all is well"
