#!/bin/sh
# The first process of a virtual machine: it makes the place that the lab needs, runs the tests
# that /tests lists, and says on the console, in lines that begin with `@@`, how each ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
chmod 1777 /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ln -s /proc/self/fd /dev/fd
ip link set lo up
# Here the world that the tests need must be there: none of them may skip itself.
export CI=true RUST_BACKTRACE=0
. /environment

echo "@@ kernel $(uname -r)"
"$MANTLED_BIN" doctor >/tmp/said 2>&1
code=$?
cat /tmp/said
echo "@@ doctor $code"
if [ "$code" = 0 ]; then
    while read -r suite program skipped; do
        for name in $("$program" --list --format terse | sed -n 's/: test$//p'); do
            case " $skipped " in *" $name "*) continue ;; esac
            if timeout -k 5 "$TEST_SECONDS" "$program" --exact "$name" --nocapture >/tmp/said 2>&1; then
                verdict=passed
            else
                verdict="failed ($?)"
                sed 's/^/    /' /tmp/said
            fi
            echo "@@ test $suite $name $verdict"
        done
    done </tests
fi
echo "@@ end"
# There is nothing to be saved.
echo o >/proc/sysrq-trigger
sleep 60
