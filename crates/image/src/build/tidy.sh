# Makes a template of an installed tree. Run by finish.sh inside the tree, where no symbolic
# link of a package can lead to a file of the host.
set -eu
cd /

# Programs written by a model say `python`, and pip may write where it likes: the whole machine
# is thrown away.
ease_python() {
    [ -e usr/bin/python3 ] || return 0
    [ -e usr/bin/python ] || ln -s python3 usr/bin/python
    rm -f usr/lib/python3*/EXTERNALLY-MANAGED
}

# In Debian's file for such things, which environments made with venv run as well.
customize_python() {
    for site in etc/python3*/sitecustomize.py; do
        [ -e "$site" ] || continue
        printf '\n%s' "$PANDA_SITE" >> "$site"
    done
}

# Licences stay; what only a person at a terminal would read goes.
drop_documentation() {
    find usr/share/doc -type f ! -name copyright -delete
    find usr/share/doc -type d -empty -delete
    rm -rf usr/share/man/* usr/share/info/* usr/share/lintian usr/share/bug
    find usr/share/locale -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
}

# Compiled modules are valid only for the time stamp of their source. The file system gives
# every file the same one, so give it to the sources first.
compile_python() {
    [ -e usr/bin/python3 ] || return 0
    # Those in etc have their compiled form in usr.
    find usr etc -name '*.py' -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    # Some packages ship sources for other versions on purpose; those stay uncompiled.
    python3 -m compileall -qq -f -j 0 --invalidation-mode timestamp /usr/lib/python3* || true
}

# mmdebstrap lends the tree the host's names and package sources; a template has nothing of
# the host in it, and nothing that two sandboxes must not share.
forget_host() {
    # Removed first: a link would lead to another file.
    rm -f etc/hostname etc/hosts etc/resolv.conf etc/machine-id var/lib/dbus/machine-id
    echo sandbox > etc/hostname
    printf '127.0.0.1 localhost sandbox\n::1 localhost\n' > etc/hosts
    # The gateway of every sandbox is its resolver (pandastack_proto::network).
    printf 'nameserver 198.18.0.1\noptions timeout:2 attempts:2\n' > etc/resolv.conf
    : > etc/machine-id
    rm -rf var/lib/systemd/random-seed etc/ssh/ssh_host_*
    rm -rf etc/apt/sources.list etc/apt/sources.list.d/* etc/apt/auth.conf*
    rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/cache/ldconfig/*
    find var/log -type f -delete
}

echo "pandastack: filesystem clean"
ease_python
customize_python
drop_documentation
sh -eu -c "$PANDA_PREPARE"
echo "pandastack: filesystem compile"
compile_python
forget_host
