//! Who a jailed process is on the host.
//!
//! ```text
//!   supervisor's namespace        0x60000000 … , or the supervisor's own id
//!     └─ process 1, the program   1000      written by the supervisor (OuterIds::map)
//!          └─ a copy              1000      written by its keeper, through its own /proc;
//!               └─ its copy       1000      in a jail without one by give_ids
//! ```
//!
//! A user namespace can be made only by somebody who has an id in the one around it, so a copy
//! without ids runs well but cannot be copied.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libc::c_int;
use rustix::fs::{Mode, OFlags};

use crate::Child;
use crate::child::INNER_ID;

/// Host ids that a jailed process runs as.
pub(crate) struct OuterIds {
    uid: u32,
    gid: u32,
    /// Whether we may map ids other than our own.
    pub privileged: bool,
}

/// First host id given to machines by a privileged supervisor, and how many there are. Far above
/// the ids of people, of services and of the ranges in subuid(5).
const FIRST_ID: u32 = 0x6000_0000;
const ID_COUNT: u32 = 1 << 16;

impl OuterIds {
    /// An id of its own for each machine where we may; our own id otherwise.
    pub fn choose() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if machines_have_own() {
            let id = FIRST_ID + NEXT.fetch_add(1, Ordering::Relaxed) % ID_COUNT;
            Self { uid: id, gid: id, privileged: true }
        } else {
            Self { uid: own.0, gid: own.1, privileged: false }
        }
    }

    /// Writes the maps of the child's user namespace: one id inside, one outside.
    pub fn map(&self, pid: u32) -> io::Result<()> {
        if !self.privileged {
            // user_namespaces(7): an unprivileged gid map needs setgroups denied first.
            fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        }
        fs::write(format!("/proc/{pid}/uid_map"), format!("{INNER_ID} {} 1", self.uid))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("{INNER_ID} {} 1", self.gid))
    }
}

/// Whether each machine gets an id of its own.
pub(crate) fn machines_have_own() -> bool {
    rustix::process::geteuid().is_root() && ids_exist(FIRST_ID + ID_COUNT)
}

/// Whether `id` exists in this process's user namespace.
fn ids_exist(id: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return false };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
        match (numbers.next(), numbers.nth(1)) {
            (Some(first), Some(count)) => (first..first + count).contains(&u64::from(id)),
            _ => false,
        }
    })
}

/// The maps of a copy's user namespace. user_namespaces(7): an unprivileged gid map needs setgroups
/// denied first.
const COPY_MAPS: [(&CStr, &[u8]); 3] =
    [(c"setgroups", b"deny"), (c"gid_map", COPY_IDS), (c"uid_map", COPY_IDS)];
/// As inside, so around: a copy runs as its original does.
const COPY_IDS: &[u8] = b"1000 1000 1";
const _: () = assert!(INNER_ID == 1000);

/// How long a copy's keeper may take from the start of its program to the line that lets others
/// write its maps.
const KEEPER_DEADLINE: Duration = Duration::from_secs(1);

/// Gives a copy the ids of its user namespace, so that it can be copied itself. Does nothing if it
/// has them. For programs with [`crate::Confine::Programs`]; blocks for about a millisecond, and
/// for a second at most.
///
/// The kernel takes the maps of a namespace only from inside it or from the one around it, and
/// either from nobody without privileges there. The supervisor has these everywhere in the family,
/// but has to go there: a process of its own does, which writes three files and ends.
pub fn give_ids(copy: &Child) -> io::Result<()> {
    let keeper = keeper_of(copy)?;
    if !read_at(&keeper, c"uid_map")?.is_empty() {
        return Ok(());
    }
    let around = namespace_around(&keeper)?;
    let begin = Instant::now();
    loop {
        match write_from(&around, &keeper) {
            // Not traceable, and so not its own, before its program has begun.
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied
                    && begin.elapsed() < KEEPER_DEADLINE =>
            {
                std::thread::sleep(Duration::from_micros(200));
            }
            done => return done,
        }
    }
}

/// The directory of a program's keeper in `/proc`, which goes on meaning the keeper.
fn keeper_of(program: &Child) -> io::Result<OwnedFd> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
    let parent: u32 = parent.ok_or(io::ErrorKind::InvalidData)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let keeper = rustix::fs::open(format!("/proc/{parent}"), flags, Mode::empty())?;
    // A program that is still there has its keeper still, and both numbers meant these two.
    if program.has_ended() { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(keeper) }
}

fn read_at(dir: &OwnedFd, name: &CStr) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    io::Read::read_to_end(&mut fs::File::from(file), &mut text)?;
    Ok(text)
}

/// The user namespace around that of a process.
fn namespace_around(process: &OwnedFd) -> io::Result<OwnedFd> {
    /// `NS_GET_PARENT` of linux/nsfs.h.
    const GET_PARENT: libc::Ioctl = 0xb702;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own = rustix::fs::openat(process, c"ns/user", flags, Mode::empty())?;
    // SAFETY: this request takes no argument and returns a new descriptor.
    let around = unsafe { libc::ioctl(own.as_raw_fd(), GET_PARENT) };
    if around < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(around) })
}

/// Writes the maps of a process from a user namespace, in a child that ends at once.
fn write_from(namespace: &OwnedFd, process: &OwnedFd) -> io::Result<()> {
    let (namespace, process) = (namespace.as_fd().as_raw_fd(), process.as_fd().as_raw_fd());
    let unused = 0usize;
    // SAFETY: without CLONE_VM the child has its own copy of memory and of this stack, as after
    // fork(2). It makes system calls only, allocates nothing and takes no lock.
    let made = unsafe {
        libc::syscall(libc::SYS_clone, libc::SIGCHLD as usize, unused, unused, unused, unused)
    };
    match made {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: _exit runs no destructors or handlers of the copied process.
        0 => unsafe { libc::_exit(enter_and_write(namespace, process)) },
        _ => {}
    }
    let mut status: c_int = 0;
    loop {
        // SAFETY: our own child, and room for its status.
        let waited = unsafe { libc::waitpid(made as libc::pid_t, &raw mut status, 0) };
        if waited >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, errno) => Err(io::Error::from_raw_os_error(errno)),
        (false, _) => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// In the child: 0, or the `errno` of what failed.
fn enter_and_write(namespace: RawFd, process: RawFd) -> c_int {
    // SAFETY: the pointer is valid for the life of the thread.
    let errno = || unsafe { *libc::__errno_location() };
    // SAFETY: setns takes integers.
    if unsafe { libc::setns(namespace, libc::CLONE_NEWUSER) } != 0 {
        return errno();
    }
    for (name, text) in COPY_MAPS {
        // SAFETY: a null-terminated name, and a buffer of the length given.
        unsafe {
            let file = libc::openat(process, name.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file < 0 || libc::write(file, text.as_ptr().cast(), text.len()) < 0 {
                return errno();
            }
            libc::close(file);
        }
    }
    0
}
