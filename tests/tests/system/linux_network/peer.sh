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
# Sockets may have buffers that hold what comes while a guest does not run.
echo 4194304 | tee /proc/sys/net/core/rmem_max > /proc/sys/net/core/wmem_max
# A connection does not begin with what an earlier one learned.
echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save
iperf3 -s > /dev/null &
nc -ll -p 7001 -e cat /proc/net/snmp &
exec /stream serve 7000
