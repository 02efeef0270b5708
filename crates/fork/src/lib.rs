//! What a supervisor and a machine's process say to each other when the process is forked.
//!
//! The machine's side is a library inside QEMU (`panda-qemu-fork`), which may not allocate when
//! it counts: everything here is fixed in size, and a message is one datagram of a
//! `SOCK_SEQPACKET` socket, with descriptors attached (`SCM_RIGHTS`).
//!
//! ```text
//!  supervisor                      parent                         child
//!  ──────────                      ──────                         ─────
//!  Request + descriptors ────────▶ park threads, look at
//!                                  every descriptor, clone ─────▶ put descriptors in place,
//!         ◀─── Answer + pidfd ──── release threads                start threads
//!         ◀──────────────── Answer, on the child's own socket ─── Ready
//! ```
//!
//! **Every descriptor of a child is accounted for.** It is one that came with the request and
//! replaces another of the parent ([`Request::replace`]), one that the supervisor calls common to
//! all machines of a template ([`Request::keep`]), or a kernel object without a name that the
//! child makes anew. Anything else refuses the fork.
//!
//! The copying itself ([`birth`]) is the same for QEMU and for our own monitor, which has a wire of
//! its own. It is written for a process whose C library may not be touched: no allocation, no
//! lock, system calls of its own ([`sys`]).
#![no_std]

#[cfg(test)]
extern crate std;

pub mod birth;
pub mod sys;
pub mod thread;
mod wire;

pub use wire::{Answer, FileId, Replacement, Request, Step, Steps};

/// Flags of clone(2) for the keeper, process 1 of a child's namespaces. It shares memory and
/// descriptors with the parent, which stands still meanwhile, only until it has made the child:
/// `CLONE_NEWUSER | CLONE_NEWPID | CLONE_PARENT | CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD`.
pub const KEEPER_FLAGS: u32 =
    0x1000_0000 | 0x2000_0000 | 0x0000_8000 | 0x0000_0100 | 0x0000_4000 | 0x0000_0400 | 17;

/// Flags of clone(2) for the child, made by its keeper: `CLONE_PIDFD | SIGCHLD`.
pub const CHILD_FLAGS: u32 = 0x0000_1000 | 17;

/// Process id of a machine's program in its own namespace, where number 1 is the keeper. The same
/// for every machine, forked or not, so that a filter can say "only itself" of signals.
pub const PROGRAM_PID: u32 = 2;

/// Most descriptors that come with a request: the kernel takes 253 (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 200;
