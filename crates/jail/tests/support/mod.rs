//! A prison with a prisoner in it, and what the outside can see of them.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_fork::{CHILD_FLAGS, KEEPER_FLAGS};
use pandastack_jail::{Child, Confine, Filter, Program, Rlimits, spawn};

/// A directory with nothing but the keeper and the prisoner in it.
pub fn prison() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("proc")).unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    compile(&here.join("tests/prisoner.rs.txt"), &root.join("prisoner"));
    compile(&here.join("../../bin/panda-keeper/src/main.rs"), &root.join("keeper"));
    fs::set_permissions(root.join("keeper"), Permissions::from_mode(0o111)).unwrap();
    fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
    (dir, root)
}

fn compile(source: &Path, program: &Path) {
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "--crate-name=program", "-Ctarget-feature=+crt-static", "-o"]);
    assert!(rustc.arg(program).arg(source).status().unwrap().success());
}

/// A directory with the keeper, where forks look for it, and `program` of `tests/programs`.
pub fn cell(program: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("proc")).unwrap();
    fs::copy(static_program(program), root.join(program)).unwrap();
    let keeper = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin/panda-keeper/src/main.rs");
    compile(&keeper, &root.join("panda-keeper"));
    fs::set_permissions(root.join("panda-keeper"), Permissions::from_mode(0o111)).unwrap();
    fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
    (dir, root)
}

/// Builds one of the static programs, which use this workspace's crates, with a cargo of its own.
fn static_program(name: &str) -> PathBuf {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--locked", "--package=pandastack-jail", "--target", TARGET])
        .args(["--example", name, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    assert!(cargo.status().unwrap().success());
    target_dir.join(TARGET).join("debug/examples").join(name)
}

pub fn string(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).unwrap()
}

/// The program at `path` in the prison.
pub fn program(root: &Path, path: &str, descriptors: Vec<Arc<OwnedFd>>) -> Program {
    Program {
        root: root.to_owned(),
        init: string("/keeper"),
        path: string(path),
        args: vec![string("prisoner")],
        env: Vec::new(),
        descriptors,
        rlimits: Rlimits { file_size: 1 << 20, descriptors: 64, processes: 256 },
        confine: Confine::Root,
        filter: Arc::new(Filter::machine()),
        cgroup: None,
        lifeline: None,
    }
}

/// What a prisoner said of its world.
pub type Said = HashMap<String, String>;

/// Starts the prisoner and reads what it says of its world. Its stdin stays open.
pub fn interview(program: impl FnOnce(Vec<Arc<OwnedFd>>) -> Program) -> (Child, Said, OwnedFd) {
    interview_all(1, program)
}

/// The same of `count` prisoners: the first and its descendants.
pub fn interview_all(
    count: usize,
    program: impl FnOnce(Vec<Arc<OwnedFd>>) -> Program,
) -> (Child, Said, OwnedFd) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let ((stdin, hold), (stdout, theirs)) = (pipe(), pipe());
    let theirs = Arc::new(theirs);
    let child = spawn(program(vec![Arc::new(stdin), theirs.clone(), theirs])).unwrap();
    let mut talking = count;
    let mut said = HashMap::new();
    for line in BufReader::new(File::from(stdout)).lines() {
        let line = line.unwrap();
        talking -= usize::from(line == "end=end");
        if talking == 0 {
            break;
        }
        if let Some((key, value)) = line.split_once('=') {
            said.insert(key.to_owned(), value.to_owned());
        }
    }
    (child, said, hold)
}

/// Starts a prisoner that has a child and a grandchild.
pub fn interview_family(root: &Path) -> (Child, Said, OwnedFd) {
    interview_family_on(root, None)
}

/// The same on a lifeline.
pub fn interview_family_on(root: &Path, lifeline: Option<OwnedFd>) -> (Child, Said, OwnedFd) {
    let (keeper, child) = (KEEPER_FLAGS.to_string(), CHILD_FLAGS.to_string());
    let args = ["prisoner", "2", &keeper, &child].map(string).to_vec();
    interview_all(3, |fds| Program { args, lifeline, ..program(root, "/prisoner", fds) })
}

/// A process in a prison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inmate {
    /// Its number on the host.
    pub pid: u32,
    /// Its numbers in the namespaces that it is in, the outermost first.
    pub inner: Vec<u32>,
}

/// Who is in a prison, in the order of nesting: the keeper first, then the program. Whoever has
/// ended is not, even before it is collected.
pub fn inmates(root: &Path) -> Vec<Inmate> {
    let name = root.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let lives_there = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|text| text.contains(name))
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<_> = pids
        .filter(lives_there)
        .filter_map(|pid| Some(Inmate { pid, inner: inner_numbers(pid)? }))
        .collect();
    found.sort_by_key(|inmate| (inmate.inner.len(), inmate.inner.last().copied()));
    found
}

fn inner_numbers(pid: u32) -> Option<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    Some(numbers.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect())
}

/// Whether nothing is left of a process, not even an exit status.
pub fn is_collected(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for what comes in a moment.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(5), "not yet: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
