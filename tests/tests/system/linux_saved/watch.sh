# What a guest that is saved and restored watches of itself: memory, files, its disk and its network. One line a round.
address=$1
udhcpc -i eth0 -q -n >/dev/null 2>&1
dd if=/dev/urandom of=/pattern bs=1M count=16 2>/dev/null
memory=$(md5sum </pattern)
disk=$(dd if=/dev/xvda bs=1M count=4 2>/dev/null | md5sum)
round=0
while :; do
    round=$((round + 1))
    [ "$(md5sum </pattern)" = "$memory" ] || echo "WRONG: memory"
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(dd if=/dev/xvda bs=1M count=4 2>/dev/null | md5sum)" = "$disk" ] || echo "WRONG: disk"
    dd if=/pattern of=/dev/xvda bs=64k seek=128 skip=$((round % 64)) count=1 conv=fsync 2>/dev/null
    echo 3 >/proc/sys/vm/drop_caches
    wrote=$(dd if=/pattern bs=64k skip=$((round % 64)) count=1 2>/dev/null | md5sum)
    [ "$(dd if=/dev/xvda bs=64k skip=128 count=1 2>/dev/null | md5sum)" = "$wrote" ] || echo "WRONG: written"
    ping -c 3 -W 2 "$address" >/dev/null || echo "WRONG: no answer"
    echo "round $round, $(nproc) CPUs"
    sleep 1
done
