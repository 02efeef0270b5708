//! The jail from inside and from outside: a static program that looks around and tries to leave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use pandastack_jail::{CgroupLimits, Cgroups, Program, SpawnError, Step, spawn};
use support::{eventually, inmates, interview, is_collected, prison, program, string};

#[test]
fn nothing_of_the_host_can_be_reached_from_inside() {
    let (_dir, root) = prison();
    let (child, said, _hold) = interview(|fds| program(&root, "/prisoner", fds));
    let expect = |key: &str, value: &str| assert_eq!(said[key], value, "{key} in {said:#?}");
    expect("fds", "0,1,2,3"); // 3 is the listing itself
    expect("root", "keeper,prisoner,proc");
    expect("pid", "2");
    expect("env", "");
    expect("uid", "1000 parent=1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        expect(set, "0000000000000000");
    }
    expect("NoNewPrivs", "1");
    expect("Seccomp", "2");
    for escape in ["unshare", "setuid0", "chroot", "mount", "ptrace"] {
        expect(escape, "denied");
    }
    for signal in ["kill1", "kill2", "killall", "tkill", "tgkill1", "sigqueue", "own"] {
        expect(signal, "denied");
    }
    for process in ["fork", "vfork", "clone", "cloneuser", "clone3"] {
        expect(process, "denied");
    }
    for shared in ["shm", "sem", "msg", "mq"] {
        expect(shared, "denied");
    }
    for reach in ["write", "tcp", "udp", "unix", "passwd", "exec"] {
        expect(reach, "denied");
    }
    for needed in ["thread", "tgkill2", "capset"] {
        expect(needed, "allowed");
    }
    // Not the keeper: nobody may trace what nobody may read.
    expect("proc", "2,self,thread-self");
    expect("keepermem", "denied");
    child.kill();
    child.reap();
}

#[test]
fn a_program_has_the_environment_that_it_was_given() {
    let (_dir, root) = prison();
    let env = vec![string("PANDA=bamboo"), string("EMPTY=")];
    let (child, said, _hold) = interview(|fds| Program { env, ..program(&root, "/prisoner", fds) });
    assert_eq!(said["env"], "PANDA=bamboo,EMPTY=");
    child.kill();
}

#[test]
fn the_outside_sees_namespaces_of_its_own_and_a_group() {
    let (_dir, root) = prison();
    let limits = CgroupLimits { memory_bytes: 64 << 20, pids: 16, cpu_weight: 100 };
    let group = Cgroups::find().create(&format!("test-{}", std::process::id()), limits).unwrap();
    let group = group.map(Arc::new);
    let joined = group.clone();
    let (child, _, _hold) =
        interview(|fds| Program { cgroup: joined, ..program(&root, "/prisoner", fds) });
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_ne!(of(&child.pid().to_string()), of("self"), "{name}");
    }
    if group.is_some() {
        let groups = |pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(groups(child.pid()).contains("/pandastack/test-"), "{}", groups(child.pid()));
        let keeper = inmates(&root)[0].pid;
        assert!(!groups(keeper).contains("/pandastack/test-"), "the keeper outlives the group");
    }
    child.kill();
    child.reap();
    eventually("the program is collected", || is_collected(child.pid()));
}

#[test]
fn the_keeper_has_nothing_and_ends_after_the_program() {
    let (_dir, root) = prison();
    let (child, _, _hold) = interview(|fds| program(&root, "/prisoner", fds));
    let [keeper, prisoner] = inmates(&root).try_into().unwrap();
    assert_eq!((keeper.inner, prisoner.inner), (vec![1], vec![2]));
    assert_eq!(prisoner.pid, child.pid());
    let of_keeper = |file: &str| format!("/proc/{}/{file}", keeper.pid);
    assert_eq!(fs::read_to_string(of_keeper("comm")).unwrap(), "keeper\n");
    assert_eq!(fs::read_to_string(of_keeper("cmdline")).unwrap(), "/keeper\0");
    // It may not be read, so only root may look further.
    if rustix::process::geteuid().is_root() {
        assert_eq!(fs::read_to_string(of_keeper("environ")).unwrap(), "");
        assert_eq!(fs::read_dir(of_keeper("fd")).unwrap().count(), 0);
    }

    child.kill();
    child.reap();
    eventually("both are collected", || is_collected(child.pid()) && is_collected(keeper.pid));
}

#[test]
fn a_program_does_not_end_with_its_handle() {
    let (_dir, root) = prison();
    let (child, _, hold) = interview(|fds| program(&root, "/prisoner", fds));
    let [keeper, prisoner] = inmates(&root).try_into().unwrap();
    drop(child);
    assert_eq!(inmates(&root), [keeper.clone(), prisoner]);
    // At the end of its stdin it ends by itself, and nobody has to wait for it.
    drop(hold);
    eventually("the keeper is collected", || is_collected(keeper.pid));
}

#[test]
fn a_failed_start_says_where_and_leaves_nothing() {
    let (_dir, root) = prison();
    let null = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
    let failure = |program: Program| match spawn(program).unwrap_err() {
        SpawnError::Child { step, source } => (step, source.raw_os_error()),
        other => panic!("{other:?}"),
    };
    for descriptors in [vec![], vec![null.clone()], vec![null; 20]] {
        let valid = |path| program(&root, path, descriptors.clone());
        assert_eq!(failure(valid("/missing")), (Step::Exec, Some(libc::ENOENT)));
        let keeper = Program { init: string("/missing"), ..valid("/prisoner") };
        assert_eq!(failure(keeper), (Step::Init, Some(libc::ENOENT)));
        let elsewhere = Program { root: "/nowhere".into(), ..valid("/prisoner") };
        assert_eq!(failure(elsewhere), (Step::Root, Some(libc::ENOENT)));
        assert_eq!(inmates(&root), []);
    }
}

/// A process with many threads is copied in the middle of whatever they do: nothing in the child
/// may wait for a thread that it does not have.
#[test]
fn a_busy_program_with_many_threads_can_start_many() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let (_dir, root) = prison();
    let stop = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..8)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // Threads that come and go, and the allocator.
                    std::thread::spawn(|| std::hint::black_box(vec![0u8; 1 << 16])).join().unwrap();
                }
            })
        })
        .collect();
    for _ in 0..60 {
        let (child, said, _hold) = interview(|fds| program(&root, "/prisoner", fds));
        assert_eq!(said["pid"], "2");
        child.kill();
        child.reap();
    }
    stop.store(true, Ordering::Relaxed);
    for thread in busy {
        thread.join().unwrap();
    }
    eventually("nobody is left", || inmates(&root).is_empty());
    let zombie = |pid: &str| {
        let Ok(status) = fs::read_to_string(Path::new("/proc").join(pid).join("status")) else {
            return false;
        };
        let parent = format!("PPid:\t{}\n", std::process::id());
        status.contains("State:\tZ") && status.contains(&parent) && status.contains("Name:\tkeeper")
    };
    eventually("every keeper is collected", || {
        !fs::read_dir("/proc").unwrap().flatten().any(|e| zombie(&e.file_name().to_string_lossy()))
    });
}
