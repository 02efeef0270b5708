//! Volumes: disks that were put into the machine's empty slots after it was baked.
//!
//! The slots are devices without content that have been there since boot. What one holds shows
//! once the kernel has seen that its size is another, which the device tells it of.

use std::fs;
use std::path::{Path, PathBuf};

use pandastack_proto::{ErrorCode, Failure};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::boot::wait;
use crate::failure::{because, refuse};

/// Where volumes are.
const DIR: &str = "/volumes";

/// Bytes of a sector in `/sys/block`.
const SECTOR: u64 = 512;

/// Mounts what is in a slot at `/volumes/NAME`.
///
/// A volume that was not unmounted in order is repaired from its journal here, also one that is
/// mounted read-only: its disk is a private layer, and what is written to that reaches nobody.
pub fn mount_at(slot: u8, name: &str, bytes: u64, read_only: bool) -> Result<(), Failure> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    if !plain {
        return Err(refuse(ErrorCode::InvalidArgument, "no name of a volume"));
    }
    let serial = format!("panda-volume-{slot}");
    let disk = wait::until(&serial, || filled(&serial, bytes))
        .map_err(|error| refuse(ErrorCode::TimedOut, error.to_string()))?;
    let target = Path::new(DIR).join(name);
    let failed = || format!("mount volume {name}");
    fs::create_dir_all(&target).map_err(|error| refuse(ErrorCode::Io, error.to_string()))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    // Its inode tables are holes of a new file already: nobody need write zeros there.
    let options = Some(c"noinit_itable");
    mount(&disk, &target, c"ext4", flags, options).map_err(because(failed))
}

/// Writes out what is held back, of every volume, and unmounts those that nobody uses.
pub fn flush(and_unmount: bool) -> Result<(), Failure> {
    for target in mounted() {
        let dir = openat(CWD, &target, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(because(|| format!("open {}", target.display())))?;
        syncfs(&dir).map_err(because(|| format!("write out {}", target.display())))?;
        drop(dir);
        if and_unmount {
            // One that is in use stays: all that was written is in its journal at least.
            let _ = unmount(&target, UnmountFlags::NOFOLLOW);
        }
    }
    Ok(())
}

/// What is mounted where volumes are, the last one first.
fn mounted() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = table.lines().filter_map(|line| line.split(' ').nth(1));
    let ours = targets.map(PathBuf::from).filter(|path| path.parent() == Some(Path::new(DIR)));
    let mut ours: Vec<_> = ours.collect();
    ours.reverse();
    ours
}

/// The node of the disk with this serial number, once it has this size.
fn filled(serial: &str, bytes: u64) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.path());
    let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    for disk in disks {
        if read(disk.join("serial")).trim_end() == serial {
            let sectors: u64 = read(disk.join("size")).trim_end().parse().ok()?;
            let node = Path::new("/dev").join(disk.file_name()?);
            return (sectors == bytes / SECTOR).then_some(node);
        }
    }
    None
}
