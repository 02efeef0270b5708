//! The filter of the gateway's process: a list of what it needs.
//!
//! It is the one process of ours that makes sockets of the host's network. The list says which:
//! TCP and UDP over IP, and those only to connect with. What is not in it: sockets of any other
//! family, so no abstract names, packets or netlink; listening; opening anything by a path; other
//! processes; memory with new code.

use libc::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK,
    SOCK_STREAM,
};
use pandastack_fork::CHILD_FLAGS;

use super::allow::When::{All, Always, Masked, Null, OneOf};
use super::monitor::{FCNTL, MEMORY, NEW_THREADS, PROCESS, THREAD_FLAGS, THREADS};
use super::{Filter, Rule, allow};

impl Filter {
    /// The filter for the gateway and its keeper.
    pub fn gateway() -> Self {
        Self::allowing(&[
            TRANSFER,
            SOCKETS,
            DESCRIPTORS,
            MEMORY,
            THREADS,
            NEW_THREADS,
            PROCESS,
            START,
        ])
    }
}

/// Bytes in and out of descriptors that are there. Those that come often are first.
const TRANSFER: &[Rule] = &[
    allow(libc::SYS_recvfrom, Always, "frames and flows"),
    allow(libc::SYS_sendto, Null(4), "frames and flows, to the peer only"),
    allow(libc::SYS_epoll_wait, Always, "waiting"),
    allow(libc::SYS_epoll_pwait, Always, "waiting"),
    allow(libc::SYS_epoll_pwait2, Always, "waiting"),
    allow(libc::SYS_read, Always, "wake-ups and flows"),
    allow(libc::SYS_write, Always, "wake-ups and flows"),
    allow(libc::SYS_recvmsg, Always, "requests with descriptors"),
    allow(libc::SYS_sendmsg, Always, "replies"),
    allow(libc::SYS_poll, Always, "waiting"),
    allow(libc::SYS_ppoll, Always, "waiting"),
];

/// Families that lead to others.
const INTERNET: &[u32] = &[AF_INET as u32, AF_INET6 as u32];
/// Kinds of socket, less the flags.
const KINDS: &[u32] = &[SOCK_STREAM as u32, SOCK_DGRAM as u32];
const KIND_FLAGS: u32 = (SOCK_CLOEXEC | SOCK_NONBLOCK) as u32;
/// With 0 for the usual one. Not ICMP, which some hosts let anybody send.
const PROTOCOLS: &[u32] = &[0, IPPROTO_TCP as u32, IPPROTO_UDP as u32];

/// Sockets of the host's network.
const SOCKETS: &[Rule] = &[
    allow(
        libc::SYS_socket,
        All(&[OneOf(0, INTERNET), Masked(1, !KIND_FLAGS, KINDS), OneOf(2, PROTOCOLS)]),
        "TCP and UDP",
    ),
    allow(libc::SYS_connect, Always, "where the policy allows"),
    allow(libc::SYS_getsockname, Always, "whether an address is the host's own"),
    allow(libc::SYS_getpeername, Always, "whether a socket is connected"),
    allow(libc::SYS_getsockopt, Always, "what became of a connection"),
    allow(libc::SYS_setsockopt, Always, "no delay, and resets"),
    allow(libc::SYS_shutdown, Always, "half-closed flows"),
];

/// The table of descriptors.
const DESCRIPTORS: &[Rule] = &[
    allow(libc::SYS_close, Always, "descriptors that are done with"),
    allow(libc::SYS_close_range, Always, "a keeper's descriptors"),
    allow(libc::SYS_dup3, Always, "a keeper's descriptors"),
    FCNTL,
    allow(libc::SYS_eventfd2, Always, "waking threads"),
    allow(libc::SYS_epoll_create1, Always, "a thread's list of descriptors"),
    allow(libc::SYS_epoll_ctl, Always, "a thread's list of descriptors"),
];

/// What the start of both programs takes besides.
const START: &[Rule] = &[
    allow(
        libc::SYS_clone,
        OneOf(0, &[THREAD_FLAGS, CHILD_FLAGS]),
        "threads, and the gateway itself, which the keeper's process makes",
    ),
    allow(libc::SYS_wait4, Always, "the keeper, which waits for all in its namespace"),
    allow(libc::SYS_getuid, Always, "whether the keeper's namespace has ids"),
    allow(libc::SYS_prctl, OneOf(0, &[libc::PR_SET_NAME as u32]), "names of threads"),
];

#[cfg(test)]
mod tests {
    use libc::c_long;

    use super::super::Verdict;
    use super::*;

    const DENIED: Verdict = Verdict::Fail(libc::EPERM);

    fn decide(call: c_long, args: &[i32]) -> Verdict {
        let mut all = [0; 6];
        for (to, from) in all.iter_mut().zip(args) {
            *to = *from as u64;
        }
        Filter::gateway().decide(call, all)
    }

    #[test]
    fn sockets_are_of_the_internet() {
        for family in [AF_INET, AF_INET6] {
            for kind in [SOCK_STREAM, SOCK_DGRAM] {
                let flags = kind | SOCK_CLOEXEC | SOCK_NONBLOCK;
                assert_eq!(decide(libc::SYS_socket, &[family, flags, 0]), Verdict::Allow);
            }
            assert_eq!(decide(libc::SYS_socket, &[family, libc::SOCK_RAW, 0]), DENIED);
            assert_eq!(decide(libc::SYS_socket, &[family, SOCK_DGRAM, libc::IPPROTO_ICMP]), DENIED);
        }
        for family in [libc::AF_UNIX, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK] {
            assert_eq!(decide(libc::SYS_socket, &[family, SOCK_STREAM, 0]), DENIED, "{family}");
        }
    }

    #[test]
    fn nobody_can_come_in_and_nothing_else_gets_out() {
        for call in [
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_socketpair,
            libc::SYS_kill,
            libc::SYS_ptrace,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_ioctl,
            libc::SYS_fork,
            libc::SYS_memfd_create,
            libc::SYS_io_uring_setup,
        ] {
            assert_eq!(decide(call, &[]), DENIED, "call {call}");
        }
        // To an address of one's own choice.
        assert_eq!(decide(libc::SYS_sendto, &[3, 1, 1, 0, 1, 16]), DENIED);
        assert_eq!(decide(libc::SYS_clone, &[libc::SIGCHLD]), DENIED);
    }
}
