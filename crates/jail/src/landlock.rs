//! Landlock: a second wall, which does not depend on the first.
//!
//! Namespaces and a filter leave a monitor nothing to open and no way to ask. If one of them has a
//! hole, this holds: whatever the kernel's Landlock knows is denied, and the only rules are those
//! that let the jail execute its two programs.
//!
//! | version | denies besides | kernel |
//! |---|---|---|
//! | 1 | reading, writing, listing, making, removing and executing files | 5.13 |
//! | 2 | moving files between directories | 5.19 |
//! | 3 | truncating files | 6.2 |
//! | 4 | TCP: bind and connect | 6.7 |
//! | 5 | ioctl(2) on devices | 6.10 |
//! | 6 | abstract sockets of, and signals to, anybody outside | 6.12 |
//!
//! Descriptors that were opened outside keep their powers, so nothing that a monitor is given is
//! affected.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `struct landlock_ruleset_attr` of linux/landlock.h. Each version reads as much as it knows.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: RawFd,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: u32 = 1;
/// `LANDLOCK_RULE_PATH_BENEATH`.
const PATH_BENEATH: u32 = 1;

/// `LANDLOCK_ACCESS_FS_*` that there were from the beginning: bits 0 to 12.
const FILES_1: u64 = (1 << 13) - 1;
const EXECUTE: u64 = 1 << 0;
const READ_FILE: u64 = 1 << 2;
/// `LANDLOCK_ACCESS_FS_REFER`, `TRUNCATE` and `IOCTL_DEV`.
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// `LANDLOCK_ACCESS_NET_BIND_TCP` and `CONNECT_TCP`.
const BIND_TCP: u64 = 0b01;
const CONNECT_TCP: u64 = 0b10;
/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET` and `SIGNAL`.
const SCOPES: u64 = 0b11;

/// The version of the kernel's Landlock; 0 where it has none, or where it is switched off.
pub(crate) fn version() -> u32 {
    let nothing = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag the call takes no structure and returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

impl Ruleset {
    /// Denies everything that `version` can deny, and the length that it reads.
    fn everything(version: u32) -> (Self, usize) {
        let from = |first: u32, rights: u64| if version >= first { rights } else { 0 };
        let files = FILES_1 | from(2, REFER) | from(3, TRUNCATE) | from(5, IOCTL_DEV);
        let length = match version {
            0..4 => 8,
            4..6 => 16,
            _ => 24,
        };
        (Self { files, network: from(4, BIND_TCP | CONNECT_TCP), scopes: from(6, SCOPES) }, length)
    }
}

/// Rules by which a process can execute `programs`, connect to others if it `connects`, and do
/// nothing else that Landlock knows, to be put in force by [`enforce`]. Nothing where the kernel has
/// no Landlock.
pub(crate) fn only_execute(programs: &[&Path], connects: bool) -> io::Result<Option<OwnedFd>> {
    let version = version();
    if version == 0 {
        return Ok(None);
    }
    let (mut everything, length) = Ruleset::everything(version);
    if connects {
        // What is not handled is not denied.
        everything.network &= !CONNECT_TCP;
    }
    // SAFETY: the kernel reads as much of the structure as `length` says, which is not more than
    // it has.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const everything, length, 0u32)
    };
    let ruleset = RawFd::try_from(ruleset).ok().filter(|fd| *fd >= 0);
    // SAFETY: a new descriptor, which nobody else owns.
    let ruleset = ruleset.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let ruleset = ruleset.ok_or_else(io::Error::last_os_error)?;
    for program in programs {
        // Nobody needs to be able to read it for this.
        let file = File::options().read(true).custom_flags(libc::O_PATH).open(program)?;
        // The kernel opens a program for reading in order to execute it.
        let rule = Beneath { allowed: EXECUTE | READ_FILE, parent: file.as_raw_fd() };
        let (of, kind, flags) = (ruleset.as_raw_fd(), PATH_BENEATH, 0u32);
        // SAFETY: the structure is the one that this kind of rule takes, and outlives the call.
        let added =
            unsafe { libc::syscall(libc::SYS_landlock_add_rule, of, kind, &raw const rule, flags) };
        if added != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(Some(ruleset))
}

/// Gives up, for this process and for ever, every way to open a file and to use TCP, as far as the
/// kernel has Landlock. For a helper with one thread that works on descriptors alone; it can still
/// send signals and take connections on a socket that it has.
pub fn renounce() -> io::Result<()> {
    // SAFETY: prctl with this option takes plain integers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let version = version();
    if version == 0 {
        return Ok(());
    }
    let (mut everything, length) = Ruleset::everything(version);
    everything.scopes = 0;
    // SAFETY: the kernel reads as much of the structure as `length` says, which is not more than
    // it has.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const everything, length, 0u32)
    };
    let ruleset = RawFd::try_from(ruleset).ok().filter(|fd| *fd >= 0);
    // SAFETY: a new descriptor, which nobody else owns.
    let ruleset = ruleset.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let ruleset = ruleset.ok_or_else(io::Error::last_os_error)?;
    if enforce(ruleset.as_raw_fd()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts rules in force in the calling thread and all that it starts, for ever. It must have no way
/// to new privileges. Allocates nothing; the reason of a failure is in `errno`.
pub(crate) fn enforce(ruleset: RawFd) -> bool {
    // SAFETY: the call takes two integers.
    unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0u32) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn each_version_gets_what_it_knows() {
        let of = |version| {
            let (Ruleset { files, network, scopes }, length) = Ruleset::everything(version);
            (files, network, scopes, length)
        };
        assert_eq!(of(1), (0x1fff, 0, 0, 8));
        assert_eq!(of(2), (0x3fff, 0, 0, 8));
        assert_eq!(of(3), (0x7fff, 0, 0, 8));
        assert_eq!(of(4), (0x7fff, 3, 0, 16));
        assert_eq!(of(5), (0xffff, 3, 0, 16));
        assert_eq!(of(6), (0xffff, 3, 3, 24));
        assert_eq!(of(99), (0xffff, 3, 3, 24));
        assert_eq!(size_of::<Beneath>(), 12, "it is packed");
    }

    #[test]
    fn what_is_not_there_cannot_be_allowed() {
        let missing = only_execute(&[Path::new("/nowhere/at/all")], false);
        match version() {
            0 => assert!(missing.unwrap().is_none()),
            _ => assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound),
        }
    }

    /// Without namespaces and filter, so that nothing else can be what denies.
    #[test]
    fn alone_it_leaves_nothing_but_the_program() {
        let Some(rules) = only_execute(&[Path::new("/bin/true")], false).unwrap() else {
            return; // the host has none, and `doctor` says so
        };
        let (listener, stream) = std::os::unix::net::UnixStream::pair().unwrap();
        let open_before = File::open("/etc/passwd").unwrap();
        std::thread::spawn(move || {
            // SAFETY: this option takes plain integers.
            assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
            assert!(enforce(rules.as_raw_fd()), "{}", io::Error::last_os_error());
            let denied = |what: io::Result<()>| {
                assert_eq!(what.unwrap_err().raw_os_error(), Some(libc::EACCES));
            };
            denied(File::open("/etc/passwd").map(drop));
            denied(File::create("/tmp/a-file-of-nobody").map(drop));
            denied(std::fs::read_dir("/").map(drop));
            denied(std::fs::create_dir("/tmp/a-directory-of-nobody"));
            denied(Command::new("/bin/false").status().map(drop));
            if version() >= 4 {
                denied(std::net::TcpListener::bind("127.0.0.1:0").map(drop));
            }
            // SAFETY: signal 0 asks only.
            let signal = unsafe { libc::kill(libc::getppid(), 0) };
            assert_eq!(signal, if version() >= 6 { -1 } else { 0 });
            // What was there before is as it was.
            assert!(open_before.metadata().unwrap().len() > 0);
            drop(listener);
        })
        .join()
        .unwrap();
        assert!(File::open("/etc/passwd").is_ok(), "other threads are as they were");
        drop(stream);
    }
}
