//! A fork is of one instant: memory, disk and the streams of the source, while all of them are
//! being written to.
//!
//! In the guest a program counts in memory and on disk ([`WRITER`]), by a protocol under which a
//! disk that is older or younger than the memory shows, at once or for ever. The file system is
//! checked by `e2fsck -f -n` in the child itself: the kernel's emergency remount writes out what
//! the child's memory holds and closes the journal, so what is checked is memory and disk put
//! together. A disk of another instant than the inodes, bitmaps and journal in memory would not
//! fit. The guest's image has no e2fsck: the host's is brought along, with its libraries.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::{Numbers, Sandbox, Server, skip, wait_until};

const WRITER: &str = include_str!("writer.py");
const INSPECT: &str = include_str!("inspect.py");

/// Where the host's e2fsck is in the guest: in memory, away from what is checked.
const TOOLS: &str = "/dev/shm/tools";

const REMOUNT: &str = "echo 1 > /proc/sys/kernel/sysrq; echo u > /proc/sysrq-trigger; \
                       n=0; until dmesg | grep -q 'Emergency Remount complete'; do \
                       n=$((n+1)); [ $n -lt 600 ] || exit 9; sleep 0.1; done";

/// The writable disk: another one is the template's root, and those for volumes are empty.
const DISK: &str = "for d in /sys/block/vd*; do \
                    [ $(cat $d/ro) = 0 ] && [ $(cat $d/size) != 0 ] && echo /dev/${d##*/}; done; true";

/// What a kernel says of damage.
const COMPLAINTS: &str = "dmesg | grep -iE 'EXT4-fs (error|warning)|I/O error|EROFS.*error|BUG:|\
                          Oops:|rcu.*stall|hung task|corrupt' || true";

#[test]
fn a_guest_that_writes_memory_and_disk_is_forked_at_one_instant() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    let numbers = Numbers::start(&client, &source)?;
    let tools = bring_tools(&source)?;
    let writer = start_writer(&source)?;

    // Five forks of one and one of three, all while the source writes.
    for count in [1, 1, 1, 1, 1, 3] {
        let before = counted(&source)?;
        let children = source.fork(count)?;
        for child in &children {
            let (memory, disk) = inspect(child, &writer)?;
            ensure!(memory >= before, "a child counted {memory}, its source {before} before");
            ensure!(memory == disk || memory == disk + 1, "{memory} in memory, {disk} on disk");
            check_files(child, tools)?;
            child.delete()?;
        }
        // It went on, and its stream as well, or the next fork would be of a source at rest.
        let more = || counted(&source).is_ok_and(|now| now > before + 2);
        ensure!(wait_until(Duration::from_secs(20), more), "the source stopped counting");
        numbers.wait_for(2)?;
    }
    let (memory, disk) = inspect(&source, &writer)?;
    ensure!(memory == disk || memory == disk + 1, "{memory} in memory, {disk} on disk");
    eprintln!("{} numbers came, {memory} blocks were written", numbers.finish()?);
    check_files(&source, tools)?;
    if tools { Ok(()) } else { skip("this host has no e2fsck to check the file systems with") }
}

#[test]
fn a_snapshot_of_a_guest_that_writes_is_of_one_instant() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    let numbers = Numbers::start(&client, &source)?;
    let tools = bring_tools(&source)?;
    let writer = start_writer(&source)?;
    for _ in 0..2 {
        let before = counted(&source)?;
        let snapshot = source.snapshot()?;
        let copy = client.thaw(&snapshot)?;
        let (memory, disk) = inspect(&copy, &writer)?;
        ensure!(memory >= before, "a copy counted {memory}, its source {before} before");
        ensure!(memory == disk || memory == disk + 1, "{memory} in memory, {disk} on disk");
        check_files(&copy, tools)?;
        copy.delete()?;
        numbers.wait_for(2)?;
    }
    numbers.finish()?;
    Ok(())
}

/// Starts the program that counts; its process id in the guest.
fn start_writer(source: &Sandbox) -> Result<String> {
    source.write("/root/writer.py", WRITER.as_bytes())?;
    source.write("/root/inspect.py", INSPECT.as_bytes())?;
    let line = "mkdir /var/churn; head -c 8 /dev/zero > /dev/shm/count; \
                setsid python3 /root/writer.py >/dev/null 2>/root/writer.log </dev/null & echo $!";
    source.output(line)?;
    let counts = || counted(source).is_ok_and(|now| now > 2);
    if !wait_until(Duration::from_secs(30), counts) {
        bail!("nothing is counted: {}", source.output("cat /root/writer.log")?);
    }
    Ok(source.output("pgrep -f /root/writer.py")?.trim().to_owned())
}

/// The number in memory.
fn counted(sandbox: &Sandbox) -> Result<u64> {
    let text = sandbox.output("od -An -t u8 /dev/shm/count")?;
    text.trim().parse().context("a number")
}

/// Stops the writer; the number in memory and the last one on disk, with all before it.
fn inspect(sandbox: &Sandbox, writer: &str) -> Result<(u64, u64)> {
    let output = sandbox.output(&format!("python3 /root/inspect.py {writer}"))?;
    let (memory, disk) = output.trim().split_once(' ').context("two numbers")?;
    Ok((memory.parse()?, disk.parse()?))
}

/// Copies the host's e2fsck with its loader and libraries; whether there is one.
fn bring_tools(sandbox: &Sandbox) -> Result<bool> {
    let places = ["/sbin/e2fsck", "/usr/sbin/e2fsck"];
    let Some(program) = places.into_iter().find(|place| Path::new(place).exists()) else {
        return Ok(false);
    };
    let said = Command::new("ldd").arg(program).output()?;
    let said = String::from_utf8(said.stdout)?;
    let libraries = said.split_whitespace().filter(|word| word.starts_with('/'));
    for file in libraries.chain([program]) {
        let name = Path::new(file).file_name().context("a name")?.to_string_lossy();
        sandbox.write(&format!("{TOOLS}/{name}"), &std::fs::read(file)?)?;
    }
    sandbox.output(&format!("chmod 755 {TOOLS}/*; {} -V 2>&1", e2fsck()))?;
    Ok(true)
}

/// How the host's e2fsck is called in the guest, whose libraries are of another release.
fn e2fsck() -> String {
    format!("{TOOLS}/ld-linux-x86-64.so.2 --library-path {TOOLS} {TOOLS}/e2fsck")
}

/// No complaint of the kernel, and a clean file system. It cannot be written to afterwards.
fn check_files(sandbox: &Sandbox, tools: bool) -> Result<()> {
    let complaints = sandbox.output(COMPLAINTS)?;
    ensure!(complaints.is_empty(), "{complaints}");
    if tools {
        sandbox.output(REMOUNT)?;
        let disk = sandbox.output(DISK)?;
        let check = sandbox.exec(&format!("{} -f -n {}", e2fsck(), disk.trim()))?;
        ensure!(check["exit_code"] == 0, "the file system is not clean: {check}");
    }
    Ok(())
}
