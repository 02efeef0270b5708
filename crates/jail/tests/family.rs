//! A prisoner that forks, as a machine's process does, and what becomes of its family.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use pandastack_jail::Child;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use support::{
    Inmate, eventually, inmates, interview_family, interview_family_on, is_collected, prison,
};

fn host_pid(inmate: &Inmate) -> Pid {
    Pid::from_raw(inmate.pid as i32).unwrap()
}

/// The handle of a forked program.
fn handle(inmate: &Inmate) -> Child {
    Child::from_pidfd(pidfd_open(host_pid(inmate), PidfdFlags::empty()).unwrap()).unwrap()
}

/// Keepers and programs of three generations.
fn generations(root: &Path) -> [Inmate; 6] {
    let found: [Inmate; 6] = inmates(root).try_into().unwrap();
    for (index, inmate) in found.iter().enumerate() {
        let own_number = inmate.inner.last();
        assert_eq!(own_number, Some(&if index % 2 == 0 { 1 } else { 2 }), "{found:?}");
        assert_eq!(inmate.inner.len(), 1 + index / 2, "{found:?}");
    }
    found
}

#[test]
fn every_generation_is_process_2_and_sees_only_itself() {
    let (_dir, root) = prison();
    let (child, said, _hold) = interview_family(&root);
    let family = generations(&root);
    let [keeper, program, ..] = &family;
    // As the jail's /proc counts them.
    let programs = [1, 3, 5].map(|index| family[index].inner[0].to_string());
    for (generation, own) in programs.iter().enumerate() {
        let of = |key: &str| said[&format!("{generation}.{key}")].as_str();
        assert_eq!(of("pid"), "2");
        assert_eq!(of("uid"), "1000");
        assert_eq!(of("parent"), "1");
        assert_eq!(of("CapEff"), "0000000000000000");
        assert_eq!(of("CapPrm"), "0000000000000000");
        assert_eq!(of("forked"), if generation < 2 { "true" } else { "false" });
        let seen: Vec<_> =
            of("proc").split(',').filter(|n| programs.iter().any(|p| p == n)).collect();
        assert_eq!(seen, [own], "among {programs:?} in {}", of("proc"));
    }
    assert_eq!(program.pid, child.pid());
    let is_powerless = |inmate: &Inmate| {
        let status = fs::read_to_string(format!("/proc/{}/status", inmate.pid)).unwrap();
        let is_empty = |set| status.contains(&format!("{set}:\t0000000000000000\n"));
        ["CapInh", "CapPrm", "CapEff", "CapAmb"].into_iter().all(is_empty)
    };
    eventually("keepers have no capability", || family.iter().all(is_powerless));
    kill_process(host_pid(keeper), Signal::KILL).unwrap();
    eventually("the keeper is collected", || is_collected(keeper.pid));
}

#[test]
fn a_fork_survives_its_parent_and_the_last_one_ends_the_family() {
    let (_dir, root) = prison();
    let (child, _, _hold) = interview_family(&root);
    let [keeper, _, middle_keeper, middle, last_keeper, last] = generations(&root);

    child.kill();
    child.reap();
    eventually("the first is collected", || is_collected(child.pid()));
    let left = [&keeper, &middle_keeper, &middle, &last_keeper, &last].map(Inmate::clone);
    assert_eq!(inmates(&root), left);

    let middle = handle(&middle);
    middle.kill();
    middle.reap();
    eventually("the second is collected", || is_collected(middle.pid()));
    // Its keeper stays for the third, which is in its namespace.
    let left = [&keeper, &middle_keeper, &last_keeper, &last].map(Inmate::clone);
    assert_eq!(inmates(&root), left);

    let last = handle(&last);
    last.kill();
    last.reap();
    eventually("all keepers are collected", || {
        [&keeper, &middle_keeper, &last_keeper].iter().all(|keeper| is_collected(keeper.pid))
    });
}

#[test]
fn a_family_ends_with_its_first_keeper() {
    let (_dir, root) = prison();
    let (child, _, _hold) = interview_family(&root);
    let family = generations(&root);
    kill_process(host_pid(&family[0]), Signal::KILL).unwrap();
    child.reap();
    eventually("all are collected", || family.iter().all(|inmate| is_collected(inmate.pid)));
}

#[test]
fn a_family_on_a_lifeline_ends_when_nobody_holds_that() {
    let (_dir, root) = prison();
    let (lifeline, held) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (first, _, _hold) = interview_family_on(&root, Some(lifeline));
    let family = generations(&root);
    let passed_on = held.try_clone().unwrap();
    drop(held);
    // The keeper still does what keepers do.
    first.kill();
    first.reap();
    eventually("the first is collected", || is_collected(first.pid()));
    assert_eq!(inmates(&root).len(), 5);
    drop(passed_on);
    eventually("all are collected", || family.iter().all(|inmate| is_collected(inmate.pid)));
}

/// The test runs itself as a server, which is then killed.
#[test]
fn a_family_ends_with_its_server() {
    const PRISON: &str = "PRISON";
    if let Some(root) = env::var_os(PRISON) {
        let (_child, _, _hold) = interview_family(Path::new(&root));
        loop {
            std::thread::park();
        }
    }
    let (_dir, root) = prison();
    let mut server = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_family_ends_with_its_server"])
        .env(PRISON, &root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the family is there", || inmates(&root).len() == 6);
    server.kill().unwrap();
    server.wait().unwrap();
    eventually("the family is gone", || inmates(&root).is_empty());
}
