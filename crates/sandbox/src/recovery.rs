//! Starting where another server stopped, in good order or not.
//!
//! Machines do not outlive their server (the kernel kills them when it dies), so there is
//! nothing to take over: what the journal says is still there is marked as ended, machine
//! processes that are left all the same are killed, and their directories are removed.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use pandastack_engine::Engine;
use pandastack_store::{Store, StoreError, Transition};
use pandastack_types::{EndReason, State};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use time::OffsetDateTime;

use crate::error::StartError;

/// Takes the instance directory for this server. The lock goes with the process.
pub(crate) fn take_instance(instance: &Path) -> Result<File, StartError> {
    let failed = |source| StartError::Directory { path: instance.to_owned(), source };
    std::fs::create_dir_all(instance).map_err(failed)?;
    let options = || File::options().create(true).truncate(false).write(true).to_owned();
    let file = options().open(instance.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse(instance.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Ends in the records what the last server left, and removes its machines. The instance
/// directory must be taken.
pub(crate) fn clean(machines: &Path, store: &Store, engine: &dyn Engine) -> Result<(), StartError> {
    for record in store.unfinished()? {
        tracing::info!(sandbox = %record.id, state = %record.state, "ended with its server");
        let reason = record.reason.or(Some(EndReason::ServerCrash));
        let mut from = record.state;
        if from != State::Stopping {
            write(store, Transition { to: State::Stopping, ..step(&record.id, from, reason) })?;
            from = State::Stopping;
        }
        write(store, Transition { to: State::Deleted, ..step(&record.id, from, reason) })?;
    }
    remove_machines(machines, |machine| engine.clear(machine))
        .map_err(|source| StartError::Directory { path: machines.to_owned(), source })
}

fn step(id: &pandastack_types::SandboxId, from: State, reason: Option<EndReason>) -> Transition {
    Transition { id: *id, from, to: State::Deleted, reason, at: OffsetDateTime::now_utc() }
}

/// Records that say less than they should must not keep the server from starting.
fn write(store: &Store, change: Transition) -> Result<(), StartError> {
    match store.transition(&change) {
        Ok(()) | Err(StoreError::Missing) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `clear` removes what the machine of this name left outside its directory.
fn remove_machines(machines: &Path, clear: impl Fn(&str)) -> io::Result<()> {
    match std::fs::read_dir(machines) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                kill_leftover(&path);
                clear(&entry.file_name().to_string_lossy());
                std::fs::remove_dir_all(&path)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().mode(0o700).create(machines)
        }
        Err(error) => Err(error),
    }
}

/// Kills the process named in the machine's `pid` file if it provably belongs to the machine.
fn kill_leftover(dir: &Path) {
    let Ok(text) = std::fs::read_to_string(dir.join("pid")) else { return };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return };
    // The descriptor pins the process: what is looked at below is what gets the signal, also
    // when the number is given to another process in between.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if !belongs_to(pid, dir) {
        return;
    }
    tracing::warn!(pid = pid.as_raw_nonzero(), "killing a machine that its server left behind");
    // It may have ended by itself just now.
    let _ = pidfd_send_signal(&process, Signal::KILL);
}

/// Whether a process has a file of the machine's directory open. A name on its command line would
/// prove less: anybody can write one there.
fn belongs_to(pid: Pid, dir: &Path) -> bool {
    let own: Vec<(u64, u64)> = identities(dir).collect();
    let open = format!("/proc/{}/fd", pid.as_raw_nonzero());
    identities(Path::new(&open)).any(|file| own.contains(&file))
}

/// Device and inode of what the entries of a directory lead to.
fn identities(dir: &Path) -> impl Iterator<Item = (u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| std::fs::metadata(entry.path()).ok());
    files.map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::machines::new_name;

    #[test]
    fn an_instance_has_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let lock = take_instance(dir.path()).unwrap();
        assert!(matches!(take_instance(dir.path()), Err(StartError::InUse(_))));
        drop(lock);
        assert!(take_instance(dir.path()).is_ok());
    }

    #[test]
    fn a_leftover_machine_is_killed_and_a_stranger_is_not() {
        let root = tempfile::tempdir().unwrap();
        let machines = root.path().join("machines");
        let mut processes = Vec::new();
        for ours in [true, false] {
            let dir = machines.join(new_name());
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("disk"), "x").unwrap();
            let disk = File::open(dir.join("disk")).unwrap();
            let input = if ours { Stdio::from(disk) } else { Stdio::null() };
            let mut command = Command::new("sleep");
            let child = command.arg("60").stdin(input).spawn().unwrap();
            std::fs::write(dir.join("pid"), format!("{}\n", child.id())).unwrap();
            processes.push((ours, child));
        }
        remove_machines(&machines, |_| {}).unwrap();
        assert_eq!(std::fs::read_dir(&machines).unwrap().count(), 0);
        for (ours, mut child) in processes {
            let until = Instant::now() + Duration::from_secs(5);
            while ours && child.try_wait().unwrap().is_none() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(child.try_wait().unwrap().is_some(), ours);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
