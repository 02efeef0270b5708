//! Every descriptor of the process, and what a child has in its place.
//!
//! Two processes that share an open file description share its position, its flags and, for a
//! socket or an eventfd, what is in it. So a child keeps nothing but what the supervisor called
//! common and nobody can write to:
//!
//! | what it is | what the child has |
//! |---|---|
//! | named by the request | the descriptor that came with it |
//! | common to a template, read-only or sealed; `/dev/null` | the same |
//! | eventfd | a new one with the same count |
//! | epoll without members, signalfd | a new one |
//! | anything else | no fork |
//!
//! The survey is made in the parent while its other threads stand still, so the counts are those
//! of the instant that is copied: whoever waits for an eventfd in the child is woken by what was
//! signalled before the fork and by nothing after it.

use core::cell::UnsafeCell;

use libc::c_int;
use pandastack_fork::birth::Fd;
use pandastack_fork::{FileId, Replacement, Request, Step, sys};

use crate::failure::Failure;
use crate::text;

/// Most descriptors of a machine's process; its rlimit is not above it.
const MAX: usize = 1024;

/// What becomes of a descriptor in a child.
#[derive(Clone, Copy)]
enum Fate {
    Keep,
    /// Becomes a copy of an attached descriptor, with the status flags it had.
    Replace {
        with: usize,
        status: usize,
    },
    Eventfd {
        count: u32,
        flags: usize,
    },
    Epoll,
    Signalfd {
        mask: u64,
        flags: usize,
    },
}

/// The descriptors of the process, looked at for one fork.
pub struct Survey {
    entries: [(usize, Fate); MAX],
    len: usize,
}

/// Too large for a stack of QEMU's, and there is no allocation here.
pub struct Place(UnsafeCell<Survey>);

// SAFETY: only the main thread touches it, one fork at a time.
unsafe impl Sync for Place {}

impl Place {
    /// An empty survey.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(Survey { entries: [(0, Fate::Keep); MAX], len: 0 }))
    }

    /// The survey.
    ///
    /// # Safety
    /// Only in the main thread, and not while an earlier borrow is in use.
    #[expect(clippy::mut_from_ref, reason = "exclusive by the caller's promise")]
    pub unsafe fn get(&self) -> &mut Survey {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.0.get() }
    }
}

/// Replaces files in this process at once: those that nobody may write to from now on.
pub fn replace_here(entries: &[Replacement], attached: &[Fd]) -> Result<(), Failure> {
    if entries.is_empty() {
        return Ok(());
    }
    text::each_descriptor(|fd| {
        if attached.contains(&(fd as Fd)) {
            return Ok(());
        }
        let file = identity(fd).map_err(|errno| (errno, fd))?;
        match entries.iter().find(|entry| entry.file == file) {
            Some(entry) => put(attached[usize::from(entry.with)] as usize, fd).map_err(|e| (e, fd)),
            None => Ok(()),
        }
    })
    .map_err(at(Step::Freeze))
}

impl Survey {
    /// Looks at every descriptor but the attached ones and decides its fate.
    pub fn make(&mut self, request: &Request, attached: &[Fd]) -> Result<(), Failure> {
        self.len = 0;
        text::each_descriptor(|fd| {
            if attached.contains(&(fd as Fd)) {
                return Ok(());
            }
            let fate = fate(fd, request, attached).map_err(|errno| (errno, fd))?;
            let Some(entry) = self.entries.get_mut(self.len) else {
                return Err((libc::EMFILE, fd));
            };
            *entry = (fd, fate);
            self.len += 1;
            Ok(())
        })
        .map_err(at(Step::Survey))
    }

    /// In a child: puts everything in its place and closes the attached descriptors.
    pub fn apply(&self, attached: &[Fd]) -> Result<(), Failure> {
        for &(fd, fate) in &self.entries[..self.len] {
            settle(fd, fate).map_err(|errno| at(Step::Descriptors)((errno, fd)))?;
        }
        close_all(attached);
        Ok(())
    }
}

fn at(step: Step) -> impl Fn((c_int, usize)) -> Failure {
    move |(errno, fd)| Failure { step, errno, subject: fd as i32 }
}

/// Closes descriptors that came with a request.
pub fn close_all(attached: &[Fd]) {
    for &fd in attached {
        let _ = sys::close(fd as usize);
    }
}

fn fate(fd: usize, request: &Request, attached: &[Fd]) -> Result<Fate, c_int> {
    let stat = sys::fstat(fd)?;
    let file = FileId { device: stat.st_dev, inode: stat.st_ino };
    let status = sys::fcntl(fd, libc::F_GETFL as usize, 0)?;
    if let Some(entry) = request.replace().iter().find(|entry| entry.file == file) {
        return Ok(Fate::Replace { with: attached[usize::from(entry.with)] as usize, status });
    }
    let frozen = request.freeze().iter().any(|entry| entry.file == file);
    if frozen || request.keep().contains(&file) {
        return if is_read_only(fd, status) { Ok(Fate::Keep) } else { Err(libc::EROFS) };
    }
    let null = libc::makedev(1, 3);
    if stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == null {
        return Ok(Fate::Keep);
    }
    kernel_object(fd, status)
}

/// Whether nothing can be changed through a descriptor.
fn is_read_only(fd: usize, status: usize) -> bool {
    if status & libc::O_ACCMODE as usize == libc::O_RDONLY as usize {
        return true;
    }
    let sealed = (libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) as usize;
    sys::fcntl(fd, libc::F_GET_SEALS as usize, 0).is_ok_and(|seals| seals & sealed == sealed)
}

/// Kernel objects without a name that can be made anew.
fn kernel_object(fd: usize, status: usize) -> Result<Fate, c_int> {
    let mut name = [0; 64];
    let link = text::Path::new().text(b"/proc/self/fd/").number(fd);
    let length = sys::readlink(link.as_bytes(), &mut name)?;
    let mut buffer = [0; text::FILE];
    let path = text::Path::new().text(b"/proc/self/fdinfo/").number(fd);
    let info = text::file(&path, &mut buffer)?;
    let field = |name| text::field(info, name);
    let nonblocking = status & libc::O_NONBLOCK as usize;
    // Numerically the flags of eventfd2 and signalfd4 are those of open: eventfd(2).
    let flags = nonblocking | libc::O_CLOEXEC as usize;
    match &name[..length] {
        b"anon_inode:[eventfd]" => {
            let count = field(b"eventfd-count:").and_then(|text| text::number(text, 16));
            // The counter has 64 bits, the system call takes 32: more is never used for waking.
            let count = count.and_then(|count| u32::try_from(count).ok()).ok_or(libc::ERANGE)?;
            let semaphore = field(b"eventfd-semaphore:") == Some(b"1");
            let semaphore = if semaphore { libc::EFD_SEMAPHORE as usize } else { 0 };
            Ok(Fate::Eventfd { count, flags: flags | semaphore })
        }
        // QEMU makes one per context and uses it from 64 descriptors on. Its members refer to
        // open files, not to numbers: a copy would wait for the parent's.
        b"anon_inode:[eventpoll]" if field(b"tfd:").is_none() => Ok(Fate::Epoll),
        b"anon_inode:[eventpoll]" => Err(libc::EBUSY),
        b"anon_inode:[signalfd]" => {
            let mask = field(b"sigmask:").and_then(|text| text::number(text, 16));
            Ok(Fate::Signalfd { mask: mask.ok_or(libc::EINVAL)?, flags })
        }
        _ => Err(libc::EBADF),
    }
}

fn settle(fd: usize, fate: Fate) -> Result<(), c_int> {
    let fresh = match fate {
        Fate::Keep => return Ok(()),
        Fate::Replace { with, status } => {
            put(with, fd)?;
            // A new socket blocks; the one before it was told not to.
            return sys::fcntl(fd, libc::F_SETFL as usize, status).map(drop);
        }
        Fate::Eventfd { count, flags } => sys::eventfd(count as usize, flags)?,
        Fate::Epoll => sys::epoll_create(libc::EPOLL_CLOEXEC as usize)?,
        Fate::Signalfd { mask, flags } => sys::signalfd(mask, flags)?,
    };
    let moved = put(fresh, fd);
    let _ = sys::close(fresh);
    moved
}

fn put(from: usize, to: usize) -> Result<(), c_int> {
    sys::dup3(from, to, libc::O_CLOEXEC as usize).map(drop)
}

fn identity(fd: usize) -> Result<FileId, c_int> {
    let stat = sys::fstat(fd)?;
    Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
}
