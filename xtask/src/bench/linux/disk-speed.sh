#!/bin/sh
# disk-speed DISK SECONDS [ROOT]: reads DISK by fio, of a system on the disk ROOT, or of this one: prints
# `fio NAME KiB/s IOPS` for each pattern.
disk=$1
seconds=$2
inside=
if [ -n "$3" ]; then
    mount -t ext4 -o ro,noload "$3" /mnt || exit 1
    for directory in dev proc sys; do
        mount -o bind /$directory /mnt/$directory || exit 1
    done
    mount -t tmpfs tmp /mnt/tmp
    inside="chroot /mnt"
fi

# read NAME PATTERN BYTES DEPTH
read_disk() {
    PATH=/usr/bin:/bin $inside fio --name=j --filename="$disk" --rw="$2" --bs="$3" --iodepth="$4" --ioengine=libaio \
        --direct=1 --readonly --time_based --runtime="$seconds" --ramp_time=1 --norandommap --randrepeat=1 --thread \
        --output-format=terse --terse-version=3 > /tmp/fio || exit 1
    echo "fio $1 $(cut -d';' -f7,8 /tmp/fio | tr ';' ' ')"
}

read_disk random_4k_1 randread 4k 1
read_disk random_4k_32 randread 4k 32
read_disk sequential_1m_4 read 1m 4
