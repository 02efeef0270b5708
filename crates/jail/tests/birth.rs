//! A static program that copies itself, in a real jail: what our monitor does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use pandastack_jail::{Child, Confine, Filter, Program, give_ids};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use support::{Said, cell, eventually, inmates, interview_all, is_collected, program, string};

/// The program that makes so many generations of itself.
fn copier(root: &Path, copies: usize) -> impl FnOnce(Vec<Arc<OwnedFd>>) -> Program {
    let args = vec![string("copier"), string(copies.to_string())];
    let root = root.to_owned();
    move |fds| Program { init: string("/panda-keeper"), args, ..program(&root, "/copier", fds) }
}

fn assert_whole(said: &Said, generation: usize) {
    let parts = ["pid", "tid", "storage", "announced", "raise", "owner", "threads", "allocator"];
    for part in parts {
        let is = &said[&format!("{generation}.{part}")];
        assert_eq!(is, "true", "{part} of generation {generation} in {said:#?}");
    }
}

#[test]
fn every_copy_is_a_whole_process_to_its_c_library() {
    let (_dir, root) = cell("copier");
    let (child, said, _hold) = interview_all(3, copier(&root, 2));
    for generation in 0..3 {
        assert_whole(&said, generation);
    }
    assert_eq!((said["0.forked"].as_str(), said["1.forked"].as_str()), ("true", "true"));
    assert_eq!(inmates(&root).len(), 6);
    child.kill();
    child.reap();
    eventually("the first is collected", || is_collected(child.pid()));
    assert_eq!(inmates(&root).len(), 5, "copies outlive the original");
}

/// The same with a monitor's confinement.
fn confined(root: &Path, copies: usize) -> impl FnOnce(Vec<Arc<OwnedFd>>) -> Program {
    let copier = copier(root, copies);
    move |fds| Program {
        confine: Confine::Programs,
        filter: Arc::new(Filter::monitor()),
        ..copier(fds)
    }
}

/// The program of a generation.
fn handle(root: &Path, generation: usize) -> Child {
    let number = inmates(root)[2 * generation + 1].pid;
    let pid = Pid::from_raw(number as i32).unwrap();
    Child::from_pidfd(pidfd_open(pid, PidfdFlags::empty()).unwrap()).unwrap()
}

/// No open, no `/proc`, no other program to execute: and all that a copy takes.
#[test]
fn confinement_allows_what_copies_take() {
    let (_dir, root) = cell("copier");
    fs::remove_dir(root.join("proc")).unwrap();
    // The second copy waits for the ids of the first one's namespace.
    let giver = std::thread::spawn({
        let root = root.clone();
        move || {
            eventually("there is a copy", || inmates(&root).len() == 4);
            give_ids(&handle(&root, 1)).unwrap();
        }
    });
    let (child, said, _hold) = interview_all(3, confined(&root, 2));
    giver.join().unwrap();
    for generation in 0..3 {
        assert_whole(&said, generation);
    }
    assert_eq!((said["0.forked"].as_str(), said["1.forked"].as_str()), ("true", "true"));

    let maps = |generation: usize| {
        let keeper = inmates(&root)[2 * generation].pid;
        let of = |file| fs::read_to_string(format!("/proc/{keeper}/{file}")).unwrap();
        let parts = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        (parts(of("uid_map")), parts(of("gid_map")), of("setgroups"))
    };
    let (own, _, _) = maps(1);
    assert_eq!((own[0].as_str(), own[2].as_str()), ("1000", "1"));
    assert_eq!(own[1], maps(0).0[1], "as whom the first one runs");
    assert_eq!(maps(1).2, "deny\n");
    assert_eq!(maps(2).0, Vec::<String>::new(), "nobody asked yet");
    give_ids(&handle(&root, 2)).unwrap();
    assert_eq!(maps(2).0, own);
    for generation in 0..3 {
        give_ids(&handle(&root, generation)).unwrap(); // once more changes nothing
    }
    let gone = handle(&root, 2);
    gone.kill();
    gone.reap();
    assert!(give_ids(&gone).is_err(), "it has ended");
    child.kill();
}
