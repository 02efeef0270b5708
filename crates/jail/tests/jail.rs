//! The jail from inside and from outside: a static program that looks around and tries to leave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pandastack_jail::{CgroupLimits, Cgroups, Child, Filter, Program, Rlimits, SpawnError, spawn};

/// A directory with nothing but the prisoner in it.
fn prison() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("proc")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/prisoner.rs.txt");
    let built = Command::new("rustc")
        .args(["--edition=2021", "--crate-name=prisoner", "-Ctarget-feature=+crt-static", "-o"])
        .arg(root.join("prisoner"))
        .arg(source)
        .status()
        .unwrap();
    assert!(built.success());
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    (dir, root)
}

fn program(root: &Path, path: &str, descriptors: Vec<Arc<OwnedFd>>) -> Program {
    Program {
        root: root.to_owned(),
        path: CString::new(path).unwrap(),
        args: vec![CString::new("prisoner").unwrap()],
        descriptors,
        rlimits: Rlimits { file_size: 1 << 20, descriptors: 64, processes: 32 },
        filter: Arc::new(Filter::machine()),
        cgroup: None,
    }
}

/// Starts the prisoner and reads what it says of its world. Its stdin stays open.
fn interview(
    program: impl FnOnce(Vec<Arc<OwnedFd>>) -> Program,
) -> (Child, HashMap<String, String>, OwnedFd) {
    let (stdin, hold) = rustix::pipe::pipe().unwrap();
    let (stdout, theirs) = rustix::pipe::pipe().unwrap();
    let theirs = Arc::new(theirs);
    let child = spawn(program(vec![Arc::new(stdin), theirs.clone(), theirs])).unwrap();
    let said = BufReader::new(File::from(stdout))
        .lines()
        .map_while(Result::ok)
        .take_while(|line| line != "end=end")
        .filter_map(|line| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    (child, said, hold)
}

#[test]
fn nothing_of_the_host_can_be_reached_from_inside() {
    let (_dir, root) = prison();
    let (child, said, _hold) = interview(|fds| program(&root, "/prisoner", fds));
    let expect = |key: &str, value: &str| assert_eq!(said[key], value, "{key} in {said:#?}");
    expect("fds", "0,1,2,3"); // 3 is the listing itself
    expect("root", "prisoner,proc");
    expect("pid", "1");
    expect("env", "0");
    expect("uid", "1000 parent=0");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        expect(set, "0000000000000000");
    }
    expect("NoNewPrivs", "1");
    expect("Seccomp", "2");
    for escape in ["unshare", "setuid0", "chroot", "mount", "ptrace", "kill2", "killall"] {
        expect(escape, "denied");
    }
    for reach in ["write", "tcp", "udp", "unix", "passwd", "exec"] {
        expect(reach, "denied");
    }
    expect("thread", "allowed");
    assert!(said["proc"].split(',').all(|n| ["1", "self", "thread-self"].contains(&n)), "{said:?}");
    child.kill();
    child.reap();
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
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
        assert!(groups.contains("/pandastack/test-"), "{groups}");
    }
    child.kill();
    child.reap();
    assert!(!Path::new(&format!("/proc/{}", child.pid())).exists());
}

#[test]
fn a_failed_start_says_where_and_leaves_nothing() {
    let (_dir, root) = prison();
    let null = Arc::new(OwnedFd::from(File::open("/dev/null").unwrap()));
    let error = spawn(program(&root, "/missing", vec![null.clone()])).unwrap_err();
    assert!(
        matches!(&error, SpawnError::Child { step: pandastack_jail::Step::Exec, source }
        if source.kind() == std::io::ErrorKind::NotFound),
        "{error:?}"
    );
    let error = spawn(program(Path::new("/nowhere"), "/x", vec![null])).unwrap_err();
    assert!(
        matches!(&error, SpawnError::Child { step: pandastack_jail::Step::Root, .. }),
        "{error:?}"
    );
    let children = fs::read_to_string("/proc/self/task/self/children").unwrap_or_default();
    assert_eq!(children.trim(), "");
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
        assert_eq!(said["pid"], "1");
        child.kill();
        child.reap();
    }
    stop.store(true, Ordering::Relaxed);
    for thread in busy {
        thread.join().unwrap();
    }
}
