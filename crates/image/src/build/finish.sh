# Turns mmdebstrap's finished tree into the files of a root: root.erofs, vmlinuz and modules/.
#
# Run by mmdebstrap as a customize hook, as (possibly namespaced) root, with the tree as $1.
# Everything it makes goes to $1/.pandastack, from where mmdebstrap's own copy hooks fetch it:
# in unshare mode this process cannot write where the caller can. Arguments come in the
# environment:
#
#   SOURCE_DATE_EPOCH   time stamp of every file
#   PANDA_UUID          UUID of the file system
#   PANDA_MODULES       kernel modules the initramfs loads, without their dependencies
#   PANDA_TIDY          text of the script to run inside the tree, tidy.sh
#   PANDA_SITE          for that script: what Python runs first, sitecustomize.py
#   PANDA_PREPARE       for that script: shell lines of the recipe
#
# Lines that start with "pandastack:" are progress.
set -eu

tree=$1
out=$tree/.pandastack
mkdir "$out" "$out/modules"

# The kernel comes as a package of the same suite, unpacked but not installed: no boot loader,
# no initramfs-tools, none of the thousands of modules that a microVM has no device for.
# apt runs outside of the tree, with mmdebstrap's configuration, so that proxies and pinning
# of the host apply.
fetch_kernel() {
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG
    export APT_CONFIG
    meta=linux-image-cloud-$(chroot "$tree" dpkg --print-architecture)
    package=$(apt-cache depends "$meta" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
    [ -n "$package" ] || { echo "there is no package $meta" >&2; exit 1; }
    cd "$out"
    # Not as the user _apt, who may not write here.
    apt-get -q -o APT::Sandbox::User=root download "$package"
    unset APT_CONFIG
    chroot "$tree" sh -c 'dpkg-deb -x /.pandastack/linux-image-*.deb /.pandastack/kernel'
    mv kernel/boot/vmlinuz-* vmlinuz
}

# Copies module $1 after everything it depends on, and notes the order. Modules stay
# compressed: the kernel unpacks them itself.
add_module() {
    # Module names use - and _ for the same thing.
    pattern=$(echo "$1" | sed 's/[-_]/[-_]/g')
    if grep -q "/$pattern\.ko$" "$kernel/modules.builtin"; then return; fi
    file=$(find "$kernel" -name "$pattern.ko.xz")
    [ -n "$file" ] || { echo "there is no kernel module $1" >&2; exit 1; }
    name=${file##*/}
    if grep -qxF "$name" "$out/modules/order"; then return; fi
    for dependency in $(xz -dc "$file" | tr '\0' '\n' | sed -n 's/^depends=//p' | tr , ' '); do
        # In a subshell, because sh has no local variables.
        (add_module "$dependency")
    done
    cp "$file" "$out/modules/$name"
    echo "$name" >> "$out/modules/order"
}

collect_modules() {
    kernel=$(dirname "$(find "$out/kernel" -name modules.builtin)")
    : > "$out/modules/order"
    for module in $PANDA_MODULES; do add_module "$module"; done
}

# A plain bind mount of the tree shows none of the mounts inside it, so neither the host's /dev
# nor its /proc can end up in the image. Temporary files are left out instead of deleted: among
# them is the apt configuration that mmdebstrap itself still needs.
write_filesystem() {
    mkdir "$out/view"
    unshare --mount sh -eu -c '
        mount --bind "$1" "$1/.pandastack/view"
        exec mkfs.erofs -d1 --quiet -E force-inode-compact,noinline_data \
            -T "$SOURCE_DATE_EPOCH" -U "$PANDA_UUID" \
            --exclude-regex="^(dev|run|tmp|var/tmp)/.+" --exclude-path=.pandastack \
            "$1/.pandastack/root.erofs" "$1/.pandastack/view"
    ' sh "$tree"
    rmdir "$out/view"
}

echo "pandastack: kernel download"
fetch_kernel
echo "pandastack: kernel modules"
collect_modules
chroot "$tree" env HOME=/root sh -c "$PANDA_TIDY" < /dev/null
echo "pandastack: filesystem write"
write_filesystem
chmod -R a+rX "$out"
