//! One request, from the supervisor's datagram to the answer.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicI32, Ordering::SeqCst};
use core::time::Duration;

use libc::c_int;
use pandastack_fork::birth::{self, Fd, Side};
use pandastack_fork::{Answer, MAX_DESCRIPTORS, Request, Step, Steps, sys};

use crate::descriptors::{self, Place};
use crate::failure::Failure;
use crate::threads;

/// Socket to the supervisor; -1 without one.
static CONTROL: AtomicI32 = AtomicI32::new(-1);
static SURVEY: Place = Place::new();

/// Where a request is received. Too large for a stack of QEMU's.
struct Inbox(UnsafeCell<([u8; Request::MAX_BYTES], [u64; CONTROL_WORDS])>);

/// Room for the attached descriptors: a header of 16 bytes and 4 bytes each.
const CONTROL_WORDS: usize = 2 + MAX_DESCRIPTORS.div_ceil(2);

// SAFETY: only the main thread touches it.
unsafe impl Sync for Inbox {}

static INBOX: Inbox = Inbox(UnsafeCell::new(([0; Request::MAX_BYTES], [0; CONTROL_WORDS])));

/// Sets the socket to listen to.
pub fn listen(control: c_int) {
    CONTROL.store(control, SeqCst);
}

/// The socket to listen to, if there is one.
pub fn control() -> Option<c_int> {
    let control = CONTROL.load(SeqCst);
    (control >= 0).then_some(control)
}

/// Receives a request and carries it out. Returns in the parent, and in every child that it made.
pub fn request() {
    let Some(control) = control() else { return };
    let mut attached = [0; MAX_DESCRIPTORS];
    let (request, attached) = match receive(control, &mut attached) {
        Received::Request(request, count) => (request, &attached[..count]),
        Received::Nothing => return,
        Received::Malformed(count) => {
            descriptors::close_all(&attached[..count]);
            let failure = Failure { step: Step::Request, errno: libc::EINVAL, subject: -1 };
            return answer(control, &failure.answer(), None);
        }
        // Nobody owns this machine any more: a server closes its end only when it dies, and who
        // takes a machine over from it holds a copy.
        Received::End => sys::exit(0),
    };
    match fork(&request, attached) {
        Ok((Side::Parent(pidfd), steps)) => {
            descriptors::close_all(attached);
            answer(control, &Answer::Done(steps), Some(pidfd));
            let _ = sys::close(pidfd as usize);
        }
        // The control socket's number leads to the child's own supervisor by now.
        Ok((Side::Child, _)) => answer(control, &Answer::Done(Steps::default()), None),
        Err(failure) => {
            descriptors::close_all(attached);
            answer(control, &failure.answer(), None);
        }
    }
}

fn fork(request: &Request, attached: &[Fd]) -> Result<(Side, Steps), Failure> {
    let mut clock = Clock(sys::now_ns());
    // The process itself is complete, if it was forked a moment ago.
    birth::await_ids(Duration::from_secs(1))?;
    threads::park_others()?;
    let park = clock.lap_us();
    // Both are within what is attached: the request was checked.
    let (before, groups) = attached.split_at(usize::from(request.groups_from));
    let keeper_groups = &before[usize::from(request.keeper_groups_from)..];
    // SAFETY: this is the main thread, and the last request is over.
    let survey = unsafe { SURVEY.get() };
    let forked = descriptors::replace_here(request.freeze(), attached)
        .and_then(|()| survey.make(request, attached))
        .and_then(|()| {
            let look = clock.lap_us();
            // SAFETY: this is the main thread, and all others are parked; what they may hold, they
            // have in the child too.
            let side = unsafe { birth::fork(keeper_groups, &threads::main()) }?;
            Ok((side, look))
        });
    if let Ok((Side::Child, _)) = forked {
        become_child(survey, request, groups, attached);
        return Ok((Side::Child, Steps::default()));
    }
    let clone = clock.lap_us();
    threads::release();
    forked.map(|(side, survey)| (side, Steps { park, survey, clone }))
}

/// Gives the child its own group, descriptors and threads. One that cannot have them ends: nobody
/// uses it yet. Its supervisor hears why, or, as long as the control socket is still the parent's,
/// that it ended.
fn become_child(survey: &descriptors::Survey, request: &Request, groups: &[Fd], attached: &[Fd]) {
    let settled = birth::settle(groups, request.readable).map_err(Failure::from);
    if settled.and_then(|()| survey.apply(attached)).is_err() {
        sys::exit(1);
    }
    if let Err(failure) = threads::start_again() {
        if let Some(control) = control() {
            answer(control, &failure.answer(), None);
        }
        sys::exit(1);
    }
}

/// Measures steps that follow each other.
struct Clock(u64);

impl Clock {
    fn lap_us(&mut self) -> u32 {
        let now = sys::now_ns();
        let lap = (now - core::mem::replace(&mut self.0, now)) / 1000;
        u32::try_from(lap).unwrap_or(u32::MAX)
    }
}

#[expect(clippy::large_enum_variant, reason = "nothing is allocated here")]
enum Received {
    /// With so many attached descriptors.
    Request(Request, usize),
    /// Something else, with so many.
    Malformed(usize),
    Nothing,
    End,
}

/// Receives one datagram and the descriptors that come with it.
fn receive(control: c_int, attached: &mut [Fd; MAX_DESCRIPTORS]) -> Received {
    // SAFETY: this is the main thread, and nobody else holds the buffers.
    let (bytes, words) = unsafe { &mut *INBOX.0.get() };
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: an all-zero msghdr is an empty one.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = words.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(words);
    let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as usize;
    let args = [control as usize, &raw mut message as usize, flags, 0, 0, 0];
    // SAFETY: the message describes buffers that are ours.
    let received = match sys::outcome(unsafe { sys::call(libc::SYS_recvmsg, args) }) {
        Ok(0) => return Received::End,
        Ok(received) => received,
        Err(libc::EAGAIN | libc::EINTR) => return Received::Nothing,
        Err(_) => return Received::End,
    };
    let count = descriptors_of(&message, attached);
    let whole = message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) == 0;
    match Request::decode(&bytes[..received], count) {
        Some(request) if whole => Received::Request(request, count),
        _ => Received::Malformed(count),
    }
}

/// Copies the attached descriptors out of a message.
fn descriptors_of(message: &libc::msghdr, attached: &mut [Fd; MAX_DESCRIPTORS]) -> usize {
    let mut count = 0;
    // SAFETY: the kernel filled the control buffer; CMSG_* walk it within its length.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<c_int>();
                for index in 0..bytes / size_of::<c_int>() {
                    if let Some(slot) = attached.get_mut(count) {
                        *slot = data.add(index).read_unaligned();
                        count += 1;
                    }
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    count
}

/// Sends an answer, with a descriptor or without. A supervisor that is gone needs none.
fn answer(control: c_int, answer: &Answer, descriptor: Option<Fd>) {
    let bytes = answer.encode();
    let mut vector =
        libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut words = [0u64; 3]; // a header of 16 bytes and one descriptor, padded
    // SAFETY: an all-zero msghdr is an empty one.
    let mut message: libc::msghdr = unsafe { core::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    if let Some(descriptor) = descriptor {
        message.msg_control = words.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&words);
        // SAFETY: the buffer has room for one header and one descriptor.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as u32) as usize;
            libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(descriptor);
        }
    }
    let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as usize;
    let args = [control as usize, &raw const message as usize, flags, 0, 0, 0];
    // SAFETY: the message describes buffers that live for the call.
    let _ = unsafe { sys::call(libc::SYS_sendmsg, args) };
}
