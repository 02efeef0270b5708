# Makes initramfs.cpio in the current folder.
#
#   sh initramfs.sh BUSYBOX KERNEL MODULE...
#
# BUSYBOX is a static one, without the permission to be run; KERNEL is an unpacked package. Each
# module comes with what it depends on, in the order in which to load them; what is built in is left
# out.
set -eu

cp "$1" busybox
chmod 755 busybox
shift
kernel=$(dirname "$(find "$1" -name modules.builtin)")
shift
tree=$PWD/initramfs
mkdir -p "$tree/bin" "$tree/modules" "$tree/dev" "$tree/proc" "$tree/sys"

# Modules are unpacked: the emulated processor would take longer.
add_module() {
    # Module names use - and _ for the same thing.
    pattern=$(echo "$1" | sed 's/[-_]/[-_]/g')
    if grep -q "/$pattern\.ko" "$kernel/modules.builtin"; then return; fi
    file=$(find "$kernel" -name "$pattern.ko*")
    [ -n "$file" ] || { echo "there is no kernel module $1" >&2; exit 1; }
    name=$(basename "$file" .xz)
    if grep -qxF "$name" "$tree/modules/order"; then return; fi
    case $file in
        *.xz) xz -dc "$file" ;;
        *) cat "$file" ;;
    esac > "$tree/modules/$name"
    for dependency in $(tr '\0' '\n' < "$tree/modules/$name" | sed -n 's/^depends=//p' | tr , ' ')
    do
        # In a subshell, because sh has no local variables.
        (add_module "$dependency")
    done
    echo "$name" >> "$tree/modules/order"
}
: > "$tree/modules/order"
for module in "$@"; do add_module "$module"; done

cp busybox "$tree/bin/busybox"
for applet in $(./busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
done

# Everything that changes from run to run comes on a disk of its own, an archive.
cat > "$tree/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
while read -r module; do insmod "/modules/$module"; done < /modules/order
# The disk that the host calls $1.
disk() {
    for found in /sys/block/vd*; do
        [ "$(cat "$found/serial")" != "$1" ] || echo "/dev/${found##*/}"
    done
}
mkdir /job
tar -x -C /job < "$(disk job)"
. /job/init.sh
INIT
chmod 755 "$tree/init"
(cd "$tree" && find . | ../busybox cpio -o -H newc 2> /dev/null) > initramfs.cpio
rm -r "$tree"
