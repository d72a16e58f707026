#!/bin/sh
# The other guest: addresses that are known beforehand, and servers until the domain is destroyed.
ip -4 address flush dev eth1
ip address add 10.99.0.2/24 dev eth1
ip address add 10.98.0.2/24 dev eth0
# An address answers at its own interface alone: both interfaces are on one bridge.
for setting in arp_ignore=1 arp_announce=2; do
    echo ${setting#*=} > /proc/sys/net/ipv4/conf/all/${setting%=*}
done
ip link set dev eth1 mtu 9000
iperf3 -s > /dev/null &
exec /stream serve 7000
