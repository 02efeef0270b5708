//! Messages between supervisor and machine: the monitor's control socket, and the datagrams that
//! fork QEMU's process.
//!
//! What is understood says the same when it is said again, its descriptors are those that came
//! with it, and none is ever left open.
#![no_main]

use std::fmt::Debug;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libfuzzer_sys::fuzz_target;
use pandastack_fork::{Answer, Request as ForkRequest};
use pandastack_fuzz::{file, sockets};
use pandastack_vmm::control::{
    MAX_DESCRIPTORS, Received, Reply, Request, Role, WireError, receive, send,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    let Some(([attached, kind], message)) = bytes.split_first_chunk() else { return };
    let attached = usize::from(*attached) % (MAX_DESCRIPTORS + 20);
    let before = next_descriptor();
    match kind % 3 {
        0 => control::<Request>(message, attached),
        1 => control::<Reply>(message, attached),
        _ => fork(message, attached),
    }
    assert_eq!(next_descriptor(), before, "a descriptor is left open");
});

/// The number that the next descriptor gets: the lowest that is free.
fn next_descriptor() -> i32 {
    file(&[]).as_raw_fd()
}

fn control<T>(bytes: &[u8], attached: usize)
where
    T: DeserializeOwned + Serialize + Clone + PartialEq + Debug,
{
    let (here, there) = sockets(SocketType::SEQPACKET);
    if !post(&here, bytes, attached) {
        return;
    }
    let received = match receive::<T>(&there) {
        Ok(received) => received,
        Err(WireError::Socket(errno)) => panic!("{errno} of a message that is there"),
        Err(_) => return,
    };
    assert_eq!(received.descriptors.len(), attached);
    let with: Vec<(Role, BorrowedFd<'_>)> =
        received.descriptors.iter().map(|(role, fd)| (*role, fd.as_fd())).collect();
    send(&here, received.body.clone(), &with).expect("it came, so it is not too long");
    let again: Received<T> = receive(&there).expect("what was sent");
    let roles = |of: &Received<T>| of.descriptors.iter().map(|d| d.0).collect::<Vec<_>>();
    assert_eq!((&again.body, roles(&again)), (&received.body, roles(&received)));
}

/// Sends a datagram with so many descriptors. False if the kernel does not take it.
fn post(socket: &OwnedFd, bytes: &[u8], attached: usize) -> bool {
    let file = file(&[]);
    let attached = vec![file.as_fd(); attached];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !attached.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&attached)));
    }
    let flags = SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags).is_ok()
}

fn fork(bytes: &[u8], attached: usize) {
    if let Some(request) = ForkRequest::decode(bytes, attached) {
        let replaced = request.replace().iter().chain(request.freeze());
        replaced.for_each(|entry| assert!(usize::from(entry.with) < attached));
        assert!(request.keeper_groups_from <= request.groups_from);
        assert!(usize::from(request.groups_from) <= attached);
        let mut again = [0; ForkRequest::MAX_BYTES];
        let len = request.encode(&mut again);
        assert_eq!(ForkRequest::decode(&again[..len], attached), Some(request));
    }
    if let Some(answer) = Answer::decode(bytes) {
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
    }
}
