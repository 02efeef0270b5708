# Process 1 of level 1, first half: in the initramfs, with busybox. Finds the disks and ports that
# the host calls by name, and puts the root together under /new.
#
#   root     erofs, read-only, under an overlay in memory
#   share0…  ext4, read-only, each at /share/NAME; lines of /job/shares: NAME, or NAME FILE
#   scratch  ext4, empty, at /scratch
#   out      ext4, empty, at /out, if the host wants files back

# Ports appear a moment after their driver.
mkdir /dev/ports
until [ -e /dev/ports/control ] && [ -e /dev/ports/output ]; do
    usleep 10000
    for found in /sys/class/virtio-ports/*; do
        [ -e "$found/name" ] && ln -sf "../${found##*/}" "/dev/ports/$(cat "$found/name")"
    done
done
exec 3<> /dev/ports/control
echo up >&3

mkdir /lower /memory /new
mount -t erofs -o ro "$(disk root)" /lower
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work root /new

mkdir -p /new/scratch /new/out /new/share
for name in scratch out; do
    [ -n "$(disk $name)" ] || continue
    mount -t ext4 -o noatime,noinit_itable "$(disk $name)" /new/$name
    rmdir /new/$name/lost+found
done
number=0
while read -r name file; do
    place=/new/share/$name
    if [ -n "$file" ]; then
        place=/new/share/.$name
        ln -s ".$name/$file" "/new/share/$name"
    fi
    mkdir "$place"
    mount -t ext4 -o ro,noload "$(disk share$number)" "$place"
    number=$((number + 1))
done < /job/shares

for place in dev proc sys; do mount --move /$place /new/$place; done
mount -t tmpfs -o mode=1777 tmp /new/tmp
mount -t tmpfs -o mode=755 run /new/run
cp -r /job /new/run/job
exec switch_root /new /bin/bash /run/job/main.sh
