//! The processes of a running server, seen from outside: a machine and the gateway.

use std::fs;

use anyhow::{Context, Result};
use pandastack_tests::{Options, Server};

/// Namespaces of a process that are not ours.
fn own_namespaces(pid: u32, names: &[&str]) -> Result<()> {
    for name in names {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}"));
        assert_ne!(of(pid)?, of(std::process::id())?, "{name}");
    }
    Ok(())
}

/// Asserts that a process has no privilege and cannot get one. Comes with its status, by field.
fn unprivileged(pid: u32) -> Result<impl Fn(&str) -> String> {
    let status = read(pid, "status")?;
    let field = move |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(&format!("{name}:")));
        line.unwrap_or_default().trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_ne!(field("Uid").split_whitespace().next(), Some("0"));
    Ok(field)
}

fn read(pid: u32, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).with_context(|| file.to_owned())
}

#[test]
fn the_machine_has_nothing_but_its_inputs() -> Result<()> {
    for pool in [0, 1] {
        let server = Server::start(Options { pool, ..Options::default() })?;
        let sandbox = server.client().base()?;
        let metrics = server.client().get(&sandbox.path("/metrics"))?.json();
        let pid = metrics["pid"].as_u64().context("pid")? as u32;
        assert!(server.processes().contains(&pid));

        own_namespaces(pid, &["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])?;
        let field = unprivileged(pid)?;
        // Ours and QEMU's own.
        assert_eq!(field("Seccomp_filters"), "2");
        let environment = read(pid, "environ")?;
        let variables: Vec<_> = environment.split_terminator('\0').collect();
        assert_eq!(variables, ["LD_PRELOAD=/panda-qemu-fork.so", "PANDA_FORK_FD=5"]);
        assert_eq!(read(pid, "net/dev")?.lines().count(), 3, "only a loopback that is down");
        assert_descriptors(pid)?;
        let root = fs::read_dir(format!("/proc/{pid}/root"))?.flatten();
        let mut names: Vec<_> =
            root.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        for name in &names {
            let own = ["lib", "lib64", "panda-keeper", "panda-qemu-fork.so", "proc", "usr"];
            assert!(own.contains(&name.as_str()), "{names:?}");
        }
        let mounts = read(pid, "mounts")?;
        assert_eq!(mounts.lines().count(), 2, "its root and its own /proc: {mounts}");
        assert!(
            mounts.lines().next().is_some_and(|l| l.contains(" / ") && l.contains("ro,")),
            "{mounts}"
        );
    }
    Ok(())
}

/// The gateway has the host's network, and no file, no privilege and nobody else to see.
#[test]
fn the_gateway_has_nothing_but_sockets() -> Result<()> {
    let server = Server::start(Options::default())?;
    let sandbox = server.client().base()?;
    let pid = server.gateway()?;
    own_namespaces(pid, &["user", "mnt", "pid", "ipc", "uts", "cgroup"])?;
    let network = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/net"));
    assert_eq!(network(pid)?, network(server.pid())?);
    let field = unprivileged(pid)?;
    assert_eq!(field("Seccomp_filters"), "1");
    assert_eq!(read(pid, "environ")?, "");
    let mut names: Vec<_> = fs::read_dir(format!("/proc/{pid}/root"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["panda-gateway", "panda-keeper", "proc"]);
    assert_eq!(read(pid, "mounts")?.lines().count(), 1, "its root alone");
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let anonymous = ["socket:", "pipe:", "anon_inode:"].iter().any(|p| target.starts_with(p));
        assert!(anonymous || target.ends_with("/dev/null"), "it has {target}");
    }
    assert_eq!(sandbox.output("echo on")?, "on\n");
    Ok(())
}

/// Files: the read-only root, the two disk layers, the sealed memory, the device state. The rest
/// is pipes, sockets and kernel objects without a name.
fn assert_descriptors(pid: u32) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let anonymous = ["socket:", "pipe:", "anon_inode:"].iter().any(|p| target.starts_with(p));
        let inputs = [
            "/root.erofs",
            "/disk",
            "/disk.qcow2",
            "/state",
            "/dev/null",
            "/memfd:guest-memory (deleted)",
        ];
        let own = inputs.iter().any(|name| target.ends_with(name));
        assert!(anonymous || own, "descriptor {:?} is {target}", entry.file_name());
        let flags = fs::read_to_string(format!(
            "/proc/{pid}/fdinfo/{}",
            entry.file_name().to_string_lossy()
        ))?;
        let flags = flags.lines().find_map(|l| l.strip_prefix("flags:")).unwrap_or_default();
        let writable = i64::from_str_radix(flags.trim(), 8)? & 3 != 0;
        // The memory is open for writing, as QEMU insists, and sealed against it.
        let may_write = anonymous
            || ["/disk.qcow2", "/dev/null", "(deleted)"].iter().any(|n| target.ends_with(n));
        assert!(!writable || may_write, "{target} is open for writing");
    }
    Ok(())
}
