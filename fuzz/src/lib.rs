//! What the targets have in common: files and sockets that lead nowhere.
//!
//! A target is one function of bytes. It panics where something is not as promised: libFuzzer
//! keeps the bytes and says so. Nothing of one call may be left in the next, so that the bytes
//! alone are what happened.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub use pandastack_vmm::virtio::hostile::Script;

/// A file of memory with this content.
pub fn file(content: &[u8]) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file"));
    file.write_all_at(content, 0).expect("room in memory");
    file
}

/// A file of zeros, which takes no memory.
pub fn sparse(bytes: u64) -> File {
    let file = file(&[]);
    file.set_len(bytes).expect("a length");
    file
}

/// All that is in a file.
pub fn content(file: &File) -> Vec<u8> {
    let mut content = vec![0; file.metadata().expect("a file").len() as usize];
    file.read_exact_at(&mut content, 0).expect("a file");
    content
}

/// Two sockets that are connected, and on which nobody waits.
pub fn sockets(kind: SocketType) -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, kind, flags, None).expect("sockets")
}
