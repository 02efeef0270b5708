//! The thread of devices: one loop that gives every device its turns.
//!
//! ```text
//!        ┌─▶ give turns to devices that are due ──▶ poll: bell, descriptors ─┐
//!        │      notified, ready, or not finished                             │
//!        └───────────────────────────────────────────────────────────────────┘
//!                     stop: between two turns, everything is at rest
//! ```
//!
//! The thread is ended for every pause and fork, and begun again afterwards, often. So [`serve`]
//! keeps nothing but what a new one finds out by itself: it begins with a turn for everybody.
//!
//! **No wake-up is lost.** Who has something to say first leaves word (a slot's `notified`,
//! `stopping`), then rings. The bell is silenced before anybody looks for word.
//!
//! [`serve`]: Bell::serve

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

use super::device::Interest;

/// A device in its place, as the thread of devices sees it.
pub trait Served: Send + Sync {
    /// Whether it was notified since the last call.
    fn take_notified(&self) -> bool;

    /// Gives it a turn, which is bounded. True if there is more to do at once.
    fn work(&self) -> bool;

    /// What it waits for. Valid until its next turn, or until somebody changes the device.
    fn waiting(&self) -> Option<Waiting>;
}

/// A descriptor to wait for, without its lifetime: poll(2) does no harm to one that was closed.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    fd: RawFd,
    events: i16,
}

impl Waiting {
    /// The same, if there is anything to wait for. Who waits for nothing is not to be woken by a
    /// hangup either, which poll(2) reports unasked.
    pub fn of(interest: Interest<'_>) -> Option<Self> {
        let read = if interest.read { libc::POLLIN } else { 0 };
        let write = if interest.write { libc::POLLOUT } else { 0 };
        let events = read | write;
        (events != 0).then(|| Self { fd: interest.fd.as_raw_fd(), events })
    }
}

/// Wakes and stops the thread of devices.
#[derive(Debug)]
pub struct Bell {
    event: OwnedFd,
    /// It was rung and not silenced since: to ring again changes nothing.
    rung: AtomicBool,
    stopping: AtomicBool,
}

impl Bell {
    /// A bell that nobody has rung.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { event, rung: AtomicBool::new(false), stopping: AtomicBool::new(false) })
    }

    /// Makes it a bell of its own after a fork, which leaves both processes with the same one.
    /// Call it before anybody rings. The descriptor keeps its number.
    pub fn renew(&self) -> io::Result<()> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // SAFETY: both descriptors are owned by this process; the old one becomes another name of
        // the new one, of the same kind and with the same owner.
        if unsafe { libc::dup3(event.as_raw_fd(), self.event.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.rung.store(false, Ordering::Release);
        self.stopping.store(false, Ordering::Release);
        Ok(())
    }

    /// Its descriptor, of those that a process has to account for in a fork.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Wakes the thread of devices, or keeps it from falling asleep.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // It cannot fail: the counter is 0 or 1.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Ends one [`Bell::serve`]: the one that runs, or else the next.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.ring();
    }

    /// Gives the devices their turns until [`Bell::stop`]. Fails only if the kernel refuses to
    /// wait.
    pub fn serve(&self, slots: &[&dyn Served]) -> io::Result<()> {
        let nothing = libc::pollfd { fd: -1, events: 0, revents: 0 };
        let mut polled = vec![nothing; slots.len() + 1];
        polled[0] = libc::pollfd { fd: self.event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut due = vec![true; slots.len()];
        loop {
            for (slot, due) in slots.iter().zip(&mut due) {
                if self.stopping.load(Ordering::Acquire) {
                    break;
                }
                *due |= slot.take_notified();
                if *due {
                    *due = slot.work();
                }
            }
            if self.stopping.swap(false, Ordering::AcqRel) {
                return Ok(());
            }
            for (slot, entry) in slots.iter().zip(&mut polled[1..]) {
                *entry = slot.waiting().map_or(nothing, |waiting| libc::pollfd {
                    fd: waiting.fd,
                    events: waiting.events,
                    revents: 0,
                });
            }
            wait(&mut polled, due.contains(&true))?;
            if polled[0].revents != 0 {
                self.silence();
            }
            for (due, entry) in due.iter_mut().zip(&polled[1..]) {
                *due |= entry.revents != 0;
            }
        }
    }

    fn silence(&self) {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        // After this a ring is heard again; what was said with the rings before is looked at next.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// Waits until something is ready, or just looks.
fn wait(polled: &mut [libc::pollfd], just_look: bool) -> io::Result<()> {
    let timeout = if just_look { 0 } else { -1 };
    loop {
        // SAFETY: the pointer and the length are those of one slice.
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, timeout) };
        if ready >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
