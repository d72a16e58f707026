#!/bin/sh
# Processes as shell scripts have them: many short programs in several jobs at once, 32-bit ones between them.
# Prints `storm.sh: ok`.
set -e
cd /tmp

job() {
    count=0
    while [ $count -lt 25 ]; do
        /bin/true
        [ "$(echo "$1 $count" | tr a-z A-Z | cut -d' ' -f2)" = $count ]
        count=$((count + 1))
    done
    echo done > job.$1
}

# The 32-bit C library says its version when it is run, and its loader checks other programs.
library() {
    count=0
    while [ $count -lt 8 ]; do
        /lib32/libc.so.6 | grep -q 'GNU C Library'
        /lib/ld-linux.so.2 --verify /lib32/libc.so.6 || [ $? = 2 ]
        count=$((count + 1))
    done
    echo done > job.$1
}

job a & job b & job c & job d & library e & library f &
wait
cat job.a job.b job.c job.d job.e job.f > /dev/null
rm job.*

# A file mapped, changed and compared; a directory tree copied by a pipe and compared.
head -c 3000000 /dev/urandom > one
cp one two
cmp one two
tar -C /usr/share -cf - perl5 doc/fio | tar -xf - -C /tmp
diff -r /usr/share/doc/fio /tmp/doc/fio
rm -r one two doc perl5
echo "storm.sh: ok"
