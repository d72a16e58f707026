#!/bin/sh
# traffic sink MILLISECONDS: takes what the other guest sends, and says what came in a window of so many milliseconds to
#     whoever connects to port 7000.
# traffic source MILLISECONDS SECONDS DOM0 HOST WAY...: sends each WAY, and after so many seconds prints what moved in a
#     window: `net WAY window ...` as `costs window` says it, or `net WAY ping LEAST AVERAGE MOST` in ms. DOM0 is the
#     control domain's address, HOST the port of iperf3 on the host.
network=10.99.0
# iperf3 asks for random numbers first.
costs seed
ip link set lo up
grep ' notify_remote_via_irq$' /proc/kallsyms | sed 's/^\([0-9a-f]*\).*/net-symbol \1/'

if [ "$1" = sink ]; then
    ip address add $network.1/24 dev eth0
    printf '#!/bin/sh\nexec costs window eth0 %s\n' "$2" > /bin/window
    chmod +x /bin/window
    iperf3 -s > /dev/null 2>&1 &
    exec nc -ll -p 7000 -e /bin/window
fi

ip address add $network.2/24 dev eth0
milliseconds=$2 seconds=$3 dom0=$4 port=$5 sink=$network.1 host=10.0.2.2
shift 5

there() { nc $sink 7000 < /dev/null; }
here() { costs window eth0 "$milliseconds"; }
outside() { costs window eth1 "$milliseconds"; }

# beside WAY WINDOW COMMAND: what WINDOW sees while COMMAND runs.
beside() {
    name=$1 window=$2
    shift 2
    "$@" > /tmp/said 2>&1 &
    command=$!
    sleep "$seconds"
    echo "net $name $($window)"
    kill $command
    wait $command
    cat /tmp/said
    sleep 0.5
}

# move WAY WINDOW ADDRESS OPTIONS...: iperf3 to ADDRESS.
move() {
    name=$1 window=$2
    shift 2
    beside $name $window iperf3 -t 3600 -c "$@"
}

# echoes WAY ADDRESS: pings, each as the answer to the former comes.
echoes() {
    ping -q -A -c 20 "$2" > /dev/null
    ping -q -A -c 300 "$2" | sed -n "s|^round-trip[^=]*= \([0-9.]*\)/\([0-9.]*\)/\([0-9.]*\) ms|net $1 ping \1 \2 \3|p"
}

tries=0
until ping -q -c 1 -W 1 $sink > /dev/null || [ $tries -ge 60 ]; do
    tries=$((tries + 1))
done
sleep 1
for way; do
    case $way in
    guest_tcp) move $way there $sink ;;
    guest_udp) move $way there $sink -u -b 0 -l 1472 ;;
    guest_small) move $way there $sink -u -b 0 -l 22 ;;
    guest_ping) echoes $way $sink ;;
    dom0_tcp) move $way here "$dom0" ;;
    from_dom0_tcp) move $way here "$dom0" -R ;;
    dom0_udp) beside $way here costs flood "$dom0:9" 1472 ;;
    dom0_ping) echoes $way "$dom0" ;;
    host_tcp) move $way outside $host -p "$port" ;;
    from_host_tcp) move $way outside $host -p "$port" -R ;;
    esac
done
echo "net done"
