//! The proof that machines of this host can be forked.
//!
//! Whether a process can be copied depends on what runs the guest and on what the host lets a
//! jailed process do. So it is tried, on a machine of a real template, before anybody relies on
//! it:
//!
//! ```text
//!  source: restore, write A to memory and disk ── fork ──▶ copy: sees A in both
//!          still sees A  ◀──────────────────────────────── writes B
//!          writes C      ──────────────────────────────▶ still sees B
//!          killed        ──────────────────────────────▶ still answers
//! ```
//!
//! Besides, neither has a descriptor through which it could reach the other.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::OnceCell;

use crate::agent::{ExecSpec, Identity};
use crate::error::{ErrorChain, file_error};
use crate::{Bake, Engine, EngineError, Machine};

/// For everything: about two seconds on an idle host.
const DEADLINE: Duration = Duration::from_secs(60);

/// A file in memory and one on the disk, in the guest.
const MEMORY: &str = "/dev/shm/panda-proof";
const DISK: &str = "/var/panda-proof";

/// The outcome of the proof, once somebody asked for it.
#[derive(Default)]
pub(crate) struct Proof(OnceCell<Option<String>>);

impl Proof {
    /// Forks a machine of `bake` and looks at both sides, the first time; the same answer ever
    /// after. `scratch` is an existing empty directory.
    pub async fn of(
        &self,
        engine: &dyn Engine,
        bake: &Bake,
        scratch: &Path,
    ) -> Result<(), EngineError> {
        let why_not = self.0.get_or_init(|| async {
            prove(engine, bake, scratch).await.err().map(|error| match error {
                EngineError::NoFork(why) => why,
                other => ErrorChain(&other).to_string(),
            })
        });
        match why_not.await {
            None => Ok(()),
            Some(why) => Err(EngineError::NoFork(why.clone())),
        }
    }
}

async fn prove(engine: &dyn Engine, bake: &Bake, scratch: &Path) -> Result<(), EngineError> {
    tokio::time::timeout(DEADLINE, prove_here(engine, bake, scratch))
        .await
        .map_err(|_| EngineError::Deadline("the proof of forks"))?
}

async fn prove_here(engine: &dyn Engine, bake: &Bake, scratch: &Path) -> Result<(), EngineError> {
    let source = engine.restore(bake, &directory(scratch, "proof-source")?).await?;
    run(&*source, "proof-source").await?;
    write(&*source, "A").await?;
    // The source runs: the harder case, with a disk layer to freeze.
    let dir = directory(scratch, "proof-copy")?;
    let mut forked = source.fork(&[&dir]).await?;
    let copy = forked.machines.pop().ok_or_else(|| refused("a fork without a copy"))?;
    apart(source.pid(), copy.pid())?;
    run(&*copy, "proof-copy").await?;
    expect(&*copy, "A", "the copy lacks what its source had").await?;
    write(&*copy, "B").await?;
    expect(&*source, "A", "the source sees what its copy wrote").await?;
    write(&*source, "C").await?;
    expect(&*copy, "B", "the copy sees what its source wrote").await?;
    source.kill().await;
    expect(&*copy, "B", "the copy did not outlive its source").await?;
    copy.kill().await;
    Ok(())
}

fn directory(scratch: &Path, name: &str) -> Result<std::path::PathBuf, EngineError> {
    // The name is that of a control group as well: one for each server that proves, and for each
    // time that it begins. The group of a proof that was cut short is on its way out when the next
    // one begins, which would find it gone.
    static BEGUN: AtomicUsize = AtomicUsize::new(0);
    let begun = BEGUN.fetch_add(1, Ordering::Relaxed);
    let dir = scratch.join(format!("{name}-{begun}-{}", std::process::id()));
    fs::create_dir(&dir).map_err(|e| file_error("create", &dir, e))?;
    Ok(dir)
}

fn refused(why: &str) -> EngineError {
    EngineError::NoFork(why.to_owned())
}

async fn run(machine: &dyn Machine, name: &str) -> Result<(), EngineError> {
    machine.run().await?;
    machine.agent().resume(&Identity::random(name)?, DEADLINE).await?;
    Ok(())
}

/// Writes a word to memory and to the disk, past the guest's cache.
async fn write(machine: &dyn Machine, word: &str) -> Result<(), EngineError> {
    let line = format!("echo {word} > {MEMORY} && echo {word} > {DISK} && sync");
    output(machine, line).await.map(drop)
}

/// Reads both, from the disk itself.
async fn expect(machine: &dyn Machine, word: &str, otherwise: &str) -> Result<(), EngineError> {
    let line = format!("echo 3 > /proc/sys/vm/drop_caches; cat {MEMORY} {DISK}");
    let read = output(machine, line).await?;
    if read.split_whitespace().eq([word, word]) { Ok(()) } else { Err(refused(otherwise)) }
}

async fn output(machine: &dyn Machine, line: String) -> Result<String, EngineError> {
    let output = machine.agent().run(ExecSpec { shell: Some(line), ..ExecSpec::default() }).await?;
    if output.status.code != 0 {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(EngineError::NoFork(format!("a command in its guest failed: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Fails if two processes share a descriptor that is more than a read-only file of the template.
/// A server that is not root may not look; then the library's own account has to do.
fn apart(one: u32, other: u32) -> Result<(), EngineError> {
    let (one, other) = match (private_files(one), private_files(other)) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(e), _) | (_, Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        (Err(e), _) | (_, Err(e)) => return Err(refused(&format!("cannot look at it: {e}"))),
    };
    let shared: Vec<_> = one.intersection(&other).map(|(_, _, name)| name.as_str()).collect();
    if shared.is_empty() {
        return Ok(());
    }
    Err(refused(&format!("a copy shares {} with its source", shared.join(", "))))
}

/// Sockets, pipes and files open for writing of a process: device, inode, name.
fn private_files(pid: u32) -> io::Result<BTreeSet<(u64, u64, String)>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let files = entries.flatten().filter_map(|entry| {
        let name = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        // Kernel objects without a name all have one inode; the sealed memory cannot be written;
        // the device says nothing of those who have it open.
        let common = ["/dev/null", "/dev/kvm", "anon_inode:", "/memfd:guest-memory"];
        if common.iter().any(|prefix| name.starts_with(prefix)) {
            return None;
        }
        let writable = fs::symlink_metadata(entry.path()).ok()?.mode() & 0o200 != 0;
        let named = name.starts_with('/');
        let file = fs::metadata(entry.path()).ok()?;
        (writable || !named).then(|| (file.dev(), file.ino(), name))
    });
    Ok(files.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_that_begins_again_has_groups_of_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let name = |dir: std::path::PathBuf| dir.file_name().unwrap().to_owned();
        let first = name(directory(scratch.path(), "proof-source").unwrap());
        let other = tempfile::tempdir().unwrap();
        assert_ne!(name(directory(other.path(), "proof-source").unwrap()), first);
    }
}
