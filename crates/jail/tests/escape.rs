//! A program that is run in place of a monitor and tries everything to get out, and what the
//! outside sees of it meanwhile.
//!
//! The program (`programs/escapee.rs`) says of each attempt how it failed. With EPERM it was the
//! filter's doing; the others are named here. The same attempts are made without the filter, which
//! shows that they would work, and which of them the rest of the jail stops by itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;

use pandastack_jail::seccomp::{Rule, Verdict, When, allow};
use pandastack_jail::{Confine, Filter, Program, probe};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use support::{Said, cell, eventually, inmates, interview, program, string};

/// A jail with the escapee in it, a third program that is not to be executed, and a socket on the
/// host that nobody in there may reach.
struct Prison {
    _dir: tempfile::TempDir,
    root: std::path::PathBuf,
    host_socket: UnixDatagram,
    host_name: String,
}

impl Prison {
    fn new(name: &str) -> Self {
        let (dir, root) = cell("escapee");
        fs::remove_dir(root.join("proc")).unwrap();
        fs::copy(root.join("escapee"), root.join("extra")).unwrap();
        let host_name = format!("pandastack-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&host_name).unwrap();
        let host_socket = UnixDatagram::bind_addr(&address).unwrap();
        host_socket.set_nonblocking(true).unwrap();
        Self { _dir: dir, root, host_socket, host_name }
    }

    /// The escapee as a monitor would be started, with two sockets more.
    fn monitor(&self, args: &[&str]) -> impl FnOnce(Vec<Arc<OwnedFd>>) -> Program {
        let args = ["escapee"].iter().chain(args).map(|arg| string(*arg)).collect();
        let pair =
            |kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let sockets = [pair(SocketType::SEQPACKET).0, pair(SocketType::DGRAM).0].map(Arc::new);
        let root = self.root.clone();
        move |mut descriptors| {
            descriptors.extend(sockets);
            Program {
                init: string("/panda-keeper"),
                args,
                confine: Confine::Programs,
                filter: Arc::new(Filter::monitor()),
                ..program(&root, "/escapee", descriptors)
            }
        }
    }
}

/// Attempts that do not fail with EPERM, and how they do.
const EXCEPTIONS: &[(&str, i32)] = &[
    // So that the C library falls back to clone(2).
    ("clone3", libc::ENOSYS),
    // The filter lets a program be executed; there is none, or Landlock does not know it.
    ("exec_shell", libc::ENOENT),
    ("exec_above", libc::ENOENT),
    ("exec_other", libc::EACCES),
];

/// Attempts that Landlock alone prevents, and this kernel's does not, at least in one of the tests.
fn left_out() -> &'static [&'static str] {
    match probe().landlock {
        0 => &["exec_other", "open_root", "sendmsg_abstract"],
        1..6 => &["sendmsg_abstract"],
        _ => &[],
    }
}

/// Checks that every attempt failed, and says how many there were.
fn assert_confined(said: &Said, who: &str) -> usize {
    let prefix = format!("{who}.");
    let attempts = said.iter().filter_map(|(key, errno)| Some((key.strip_prefix(&prefix)?, errno)));
    let attempts: Vec<_> = attempts.filter(|(name, _)| *name != "made").collect();
    for (name, errno) in &attempts {
        let exception = EXCEPTIONS.iter().find(|(exception, _)| exception == name);
        let expected = exception.map_or(libc::EPERM, |(_, errno)| *errno);
        assert_eq!(**errno, expected.to_string(), "{who} at {name}");
    }
    attempts.len()
}

#[test]
fn nothing_leads_out_of_a_monitors_jail() {
    let prison = Prison::new("all");
    let args = [&["family", &prison.host_name], left_out()].concat();
    let (child, said, _hold) = interview(prison.monitor(&args));
    let tried = assert_confined(&said, "main");
    assert!(tried > 180, "{tried} attempts: it did not come to its end: {said:#?}");
    // Its own capabilities, in a namespace of its own, help neither a keeper nor a copy.
    for who in ["keeper", "copy"] {
        assert_eq!(assert_confined(&said, who), tried - 3, "{who}");
    }
    assert_eq!((said["main.made"].as_str(), said["keeper.made"].as_str()), ("true", "true"));
    let nothing = prison.host_socket.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "the host heard something");
    assert_seen_from_outside(&prison.root, child.pid());
    child.kill();
    child.reap();
    eventually("nobody is left", || inmates(&prison.root).is_empty());
}

/// What the host's `/proc` says of a process that tried everything.
fn assert_seen_from_outside(root: &Path, pid: u32) {
    let of = |file: &str| format!("/proc/{pid}/{file}");
    let status = fs::read_to_string(of("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
    assert_eq!(field("Threads"), "1");
    assert!(field("NSpid").ends_with("\t2"), "{}", field("NSpid"));
    let uids = field("Uid");
    if rustix::process::geteuid().is_root() {
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
    }
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |whose: &str| fs::read_link(format!("/proc/{whose}/ns/{name}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{name}");
    }
    // The keeper and the program, and nobody that they made.
    assert_eq!(inmates(root).len(), 2);
    let children = fs::read_to_string(of(&format!("task/{pid}/children")));
    assert_eq!(children.unwrap_or_default(), "");
    let mut descriptors: Vec<u32> = fs::read_dir(of("fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    descriptors.sort_unstable();
    assert_eq!(descriptors, [0, 1, 2, 3, 4]);
    // One mount, read-only, with three files in it.
    let mounts = fs::read_to_string(of("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let options = mounts.split_whitespace().nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|o| o == option), "{options}");
    }
    let mut names: Vec<_> = fs::read_dir(of("root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["escapee", "extra", "panda-keeper"]);
    // No socket and no interface but the loopback, which is down.
    let unix = fs::read_to_string(of("net/unix")).unwrap();
    assert_eq!(unix.lines().count(), 1, "{unix}");
    let interfaces = fs::read_to_string(of("net/dev")).unwrap();
    assert!(interfaces.lines().skip(2).all(|line| line.trim().starts_with("lo:")), "{interfaces}");
    let routes = fs::read_to_string(of("net/route")).unwrap();
    assert_eq!(routes.lines().skip(1).count(), 0, "{routes}");
    // No page of it can be written to and executed.
    let maps = fs::read_to_string(of("maps")).unwrap();
    assert!(maps.lines().any(|line| line.contains(" r-xp ")), "{maps}");
    assert!(!maps.lines().any(|line| line.contains(" rwx")), "{maps}");
}

/// The interpreter of the unit tests is ours; the kernel has its own.
#[test]
fn the_kernel_denies_what_the_filter_says() {
    /// uretprobe and uprobe: the kernel does not filter them, and ends who calls them without
    /// being in the code that it puts there for a tracer.
    const TRACERS: std::ops::RangeInclusive<i64> = 335..=336;
    let filter = Filter::monitor();
    let denied: Vec<_> = (0..470)
        .filter(|call| !TRACERS.contains(call))
        .filter(|&call| filter.decide(call, [0; 6]) == Verdict::Fail(libc::EPERM))
        .map(|call| call.to_string())
        .collect();
    assert!(denied.len() > 250, "{}", denied.len());
    let prison = Prison::new("sweep");
    let args: Vec<_> = ["sweep"].into_iter().chain(denied.iter().map(String::as_str)).collect();
    let (child, said, _hold) = interview(prison.monitor(&args));
    assert_eq!(said["swept"], denied.len().to_string());
    assert_eq!(said["through"], "");
    child.kill();
}

#[test]
fn calls_of_another_table_end_the_process() {
    for table in ["int80", "x32"] {
        let prison = Prison::new(table);
        let (child, said, _hold) = interview(prison.monitor(&[table]));
        child.reap();
        assert_eq!(said.get("before").map(String::as_str), Some("yes"), "{table}");
        assert_eq!((said.get("after"), said.get("end")), (None, None), "{table}");
    }
}

/// One wall at a time: what works without the filter, so that the first test can fail, and what
/// does not, because of namespaces, capabilities, the root directory or Landlock.
#[test]
fn without_the_filter_the_rest_holds() {
    /// Attempts, with what happens to them: nothing where the filter is all there is.
    const ATTEMPTS: &[(&str, i32)] = &[
        ("socket_inet", 0),
        ("socketpair", 0),
        ("memfd", 0),
        ("map_writable", 0),
        ("protect_code", 0),
        ("personality", 0),
        ("epoll", 0),
        ("stat", 0),
        ("ptrace_me", 0),
        ("kill_keeper", 0),
        // Landlock's price for executing it, and no more than it knows anyway.
        ("open_own", 0),
        ("openat2", 0),
        ("open_host", libc::ENOENT),
        ("open_above", libc::ENOENT),
        ("open_proc", libc::ENOENT),
        ("open_kvm", libc::ENOENT),
        ("open_keeper", libc::EACCES),
        ("open_root", libc::EACCES),
        ("open_write", libc::EACCES),
        ("create", libc::EROFS),
        ("mkdir", libc::EROFS),
        ("unlink", libc::EROFS),
        ("truncate", libc::EACCES),
        ("mknod", libc::EROFS),
        ("exec_other", libc::EACCES),
        ("exec_shell", libc::ENOENT),
        ("sendmsg_abstract", libc::EPERM),
        ("mount", libc::EPERM),
        ("mount_writable", libc::EPERM),
        ("umount", libc::EPERM),
        ("pivot_root", libc::EPERM),
        ("chroot", libc::EPERM),
        ("fsopen", libc::EPERM),
        ("unshare_mount", libc::EPERM),
        ("unshare_net", libc::EPERM),
        ("setuid", libc::EINVAL),
        ("setgroups", libc::EPERM),
        ("hostname", libc::EPERM),
        ("capset", libc::EPERM),
        ("ambient", libc::EPERM),
        ("securebits", libc::EPERM),
        ("clock", libc::EPERM),
    ];
    let left_out = left_out();
    let every: Vec<Rule> = (0..512).map(|call| allow(call, When::Always, "all")).collect();
    let prison = Prison::new("bare");
    let made = ATTEMPTS.iter().filter(|(name, _)| !left_out.contains(name));
    let mut args = vec!["try", &prison.host_name];
    args.extend(made.clone().map(|(name, _)| *name));
    let monitor = prison.monitor(&args);
    let open = Arc::new(Filter::allowing(&[&every]));
    let (child, said, _hold) = interview(|fds| Program { filter: open, ..monitor(fds) });
    for (name, expected) in made {
        assert_eq!(said[&format!("main.{name}")], expected.to_string(), "{name}");
    }
    child.kill();
}

/// A datagram socket looks names up where it was made: on the host, whoever has it. No filter can
/// read the name in a message. So a monitor gets none where there is no Landlock, and needs none.
#[test]
fn landlock_is_what_keeps_a_datagram_socket_inside() {
    let prison = Prison::new("datagram");
    fs::create_dir(prison.root.join("proc")).unwrap();
    let args = ["try", &prison.host_name, "sendmsg_abstract", "sendto_abstract"];
    let monitor = prison.monitor(&args);
    let (child, said, _hold) = interview(|fds| Program { confine: Confine::Root, ..monitor(fds) });
    assert_eq!(said["main.sendto_abstract"], libc::EPERM.to_string(), "the filter sees an address");
    assert_eq!(said["main.sendmsg_abstract"], "0");
    let mut heard = [0; 16];
    assert_eq!(prison.host_socket.recv(&mut heard).unwrap(), b"escaped".len());
    child.kill();
}
