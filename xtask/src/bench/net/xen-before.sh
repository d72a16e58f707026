# Packets between guests are as long as on any network: the bridge's MTU becomes that of the vifs.
ip link set xenbr0 mtu 1500
ip address add "$address" dev xenbr0
bridge outside
if [ -e /sys/class/net/eth0 ]; then
    ip link set outside mtu 1500
    ip link set eth0 up
    ip link set eth0 master outside
fi
LD_LIBRARY_PATH=. ./iperf3 -s > /dev/null 2>&1 < /dev/null &
