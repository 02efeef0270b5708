//! File systems: the root is a read-only disk under a writable one.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{MountFlags, mount, mount_move};

use super::wait;

/// Where the new root is put together, in the initramfs.
const NEW: &str = "/newroot";
const LOWER: &str = "/lower";
const UPPER: &str = "/upper";

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// What is needed to find modules and disks.
pub fn early() -> anyhow::Result<()> {
    mount_at("proc", "/proc", c"proc", PLAIN, None)?;
    mount_at("sysfs", "/sys", c"sysfs", PLAIN, None)?;
    mount_at("devtmpfs", "/dev", c"devtmpfs", MountFlags::NOSUID, None)
}

/// Mounts the disks over each other and makes the result the root.
pub fn switch_to_disk() -> anyhow::Result<()> {
    let root = find_disk("panda-root", "vda")?;
    let disk = find_disk("panda-disk", "vdb")?;
    let lazy = MountFlags::NOATIME | MountFlags::NODIRATIME;
    mount_at(&root, LOWER, c"erofs", MountFlags::RDONLY | lazy, None)?;
    mount_at(&disk, UPPER, c"ext4", lazy, None)?;
    for dir in ["data", "work"] {
        fs::create_dir_all(format!("{UPPER}/{dir}")).context("prepare the writable disk")?;
    }
    let layers = c"lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work";
    mount_at("overlay", NEW, c"overlay", lazy, Some(layers))?;
    for dir in ["dev", "proc", "sys"] {
        fs::create_dir_all(format!("{NEW}/{dir}")).context("make a mount point")?;
    }
    mount_move("/dev", format!("{NEW}/dev")).context("move /dev")?;
    // Memory that nothing refers to any more; the running program stays.
    let _ = fs::remove_file("/init");
    rustix::process::chdir(NEW).context("enter the new root")?;
    mount_move(".", "/").context("move the new root")?;
    rustix::process::chroot(".").context("change the root")?;
    rustix::process::chdir("/").context("enter the root")
}

/// Everything else that programs expect.
pub fn late() -> anyhow::Result<()> {
    mount_at("proc", "/proc", c"proc", PLAIN, None)?;
    mount_at("sysfs", "/sys", c"sysfs", PLAIN, None)?;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_at("devpts", "/dev/pts", c"devpts", quiet, Some(c"gid=5,mode=620,ptmxmode=666"))?;
    let own = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", "/dev/shm", c"tmpfs", own, Some(c"mode=1777"))?;
    mount_at("tmpfs", "/run", c"tmpfs", own, Some(c"mode=755"))?;
    mount_at("cgroup2", "/sys/fs/cgroup", c"cgroup2", PLAIN, None)?;
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        // devtmpfs has a /dev/ptmx of its own; a link is fine, a device node as well.
        if !Path::new(link).exists() {
            symlink(target, link).with_context(|| format!("make {link}"))?;
        }
    }
    for (dir, mode) in [("/run/lock", 0o1777), ("/tmp", 0o1777), ("/root", 0o700)] {
        fs::create_dir_all(dir).with_context(|| format!("make {dir}"))?;
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .with_context(|| format!("set the mode of {dir}"))?;
    }
    Ok(())
}

/// The disk with this serial number, or the one that is there when disks have none.
fn find_disk(serial: &str, otherwise: &str) -> anyhow::Result<String> {
    let node = wait::until(serial, || {
        let mut disks: Vec<PathBuf> =
            fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path()).collect();
        disks.retain(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vd"))
        });
        let read = |path: &PathBuf| fs::read_to_string(path.join("serial")).unwrap_or_default();
        let named = disks.iter().find(|path| read(path).trim_end() == serial);
        let unnamed = || {
            let none_is_named = disks.iter().all(|path| !read(path).starts_with("panda-"));
            disks.iter().find(|path| none_is_named && path.ends_with(otherwise))
        };
        let disk = named.or_else(unnamed)?;
        let node = format!("/dev/{}", disk.file_name()?.to_string_lossy());
        // The node follows the entry in /sys by a moment.
        openat(CWD, &node, OFlags::PATH, Mode::empty()).ok().map(|_| node)
    })?;
    Ok(node)
}

fn mount_at(
    source: &str,
    target: &str,
    kind: &CStr,
    flags: MountFlags,
    data: Option<&CStr>,
) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
    mount(source, target, kind, flags, data)
        .with_context(|| format!("mount {} at {target}", kind.to_string_lossy()))
}
