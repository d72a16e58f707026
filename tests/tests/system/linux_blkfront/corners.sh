#!/bin/busybox sh
# What blkfront is told of four disks, and what becomes of requests at their edges. Prints `corners: ok`, or what was
# not so.
export PATH=/bin
sum() {
    sha256sum | cut -d' ' -f1
}
fail() {
    echo "corners: failed: $1"
    exit 1
}
queue() {
    cat "/sys/block/$1/queue/$2"
}

# xvda: read-only. Nothing gets through, and nothing breaks.
[ "$(blockdev --getro /dev/xvda)" = 1 ] || fail "xvda is not read-only"
before=$(sum < /dev/xvda)
dd if=/dev/zero of=/dev/xvda bs=4k count=1 oflag=direct 2> /dev/null && fail "xvda was written"
echo 3 > /proc/sys/vm/drop_caches
[ "$(sum < /dev/xvda)" = "$before" ] || fail "xvda changed"

# xvdb: an odd number of sectors, discards, a cache to be flushed.
[ "$(blockdev --getsz /dev/xvdb)" = 32771 ] || fail "xvdb has $(blockdev --getsz /dev/xvdb) sectors"
[ "$(queue xvdb write_cache)" = "write back" ] || fail "xvdb has no cache"
[ "$(queue xvdb discard_max_bytes)" -gt 0 ] || fail "xvdb has no discards"
# More segments than a request of the ring holds by itself: indirect ones.
[ "$(queue xvdb max_segments)" -gt 11 ] || fail "xvdb has no indirect requests"
dd if=/dev/xvdb of=/dev/null bs=512 skip=32770 count=1 iflag=direct 2> /dev/null || fail "the last sector of xvdb"
dd if=/dev/zero of=/dev/xvdb bs=512 seek=32770 count=1 oflag=direct 2> /dev/null || fail "writing the last sector"
dd if=/dev/zero of=/dev/xvdb bs=512 seek=32771 count=1 oflag=direct 2> /dev/null && fail "a sector behind the last"
# 4 MiB in one system call, at an odd sector.
dd if=/dev/xvda of=/tmp/part bs=512 skip=3 count=8192 2> /dev/null
dd if=/tmp/part of=/dev/xvdb bs=4194304 count=1 oflag=direct 2> /dev/null || fail "a large write"
dd if=/tmp/part of=/dev/xvdb bs=512 seek=16385 count=8192 conv=fsync 2> /dev/null || fail "an odd write"
echo 3 > /proc/sys/vm/drop_caches
[ "$(dd if=/dev/xvdb bs=512 skip=16385 count=8192 2> /dev/null | sum)" = "$(sum < /tmp/part)" ] || fail "an odd read"
blkdiscard -o 8388608 -l 65536 /dev/xvdb || fail "a discard"

# xvdc: sectors of 4096 bytes.
[ "$(blockdev --getss /dev/xvdc)" = 4096 ] || fail "xvdc has sectors of $(blockdev --getss /dev/xvdc) bytes"
[ "$(queue xvdc physical_block_size)" = 4096 ] || fail "xvdc's physical sectors"
dd if=/tmp/part of=/dev/xvdc bs=4096 seek=5 count=1000 oflag=direct 2> /dev/null || fail "writing xvdc"
[ "$(dd if=/dev/xvdc bs=4096 skip=5 count=1000 iflag=direct 2> /dev/null | sum)" = \
    "$(head -c 4096000 /tmp/part | sum)" ] || fail "reading xvdc"
# No discards, as its configuration says.
[ "$(queue xvdc discard_max_bytes)" = 0 ] || fail "xvdc has discards"

# xvdd: sector 2048 cannot be read, nor sector 4096 written; its neighbours can.
dd if=/dev/xvdd of=/dev/null bs=512 skip=2047 count=1 iflag=direct 2> /dev/null || fail "before the bad sector"
dd if=/dev/xvdd of=/dev/null bs=512 skip=2048 count=1 iflag=direct 2> /dev/null && fail "the bad sector was read"
dd if=/dev/xvdd of=/dev/null bs=512 skip=2049 count=1 iflag=direct 2> /dev/null || fail "behind the bad sector"
dd if=/dev/xvdd of=/dev/null bs=1M count=2 iflag=direct 2> /dev/null && fail "a large read over the bad sector"
dd if=/dev/zero of=/dev/xvdd bs=512 seek=4096 count=1 oflag=direct 2> /dev/null && fail "the bad sector was written"
dd if=/dev/zero of=/dev/xvdd bs=4096 seek=512 count=4 conv=fsync 2> /dev/null && fail "a cached write was lost in silence"
dd if=/tmp/part of=/dev/xvdd bs=4096 seek=600 count=100 conv=fsync 2> /dev/null || fail "a write beside the bad sector"
[ "$(dd if=/dev/xvdd bs=4096 skip=600 count=100 iflag=direct 2> /dev/null | sum)" = \
    "$(head -c 409600 /tmp/part | sum)" ] || fail "what was written beside the bad sector"
echo "corners: ok"
