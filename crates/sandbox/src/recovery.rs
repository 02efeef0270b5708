//! Starting where another server stopped, in good order or not.
//!
//! A sandbox that has files of its own is hibernated, and goes on; one whose machine is held (see
//! `custody`) is taken over with it. All else is over: it is marked as ended, machine processes that
//! are left are killed, and their directories are removed.
//!
//! ```text
//!   record            files on the shelf    what it is now
//!   ──────            ──────────────────    ──────────────
//!   hibernated        yes                   hibernated
//!   running, paused   yes                   hibernated: killed before it was told, or while it woke
//!   any other         yes                   ended; the files are removed
//!   running, paused   no; machine is held   running, paused; ended if the machine cannot be adopted
//!   any               no                    ended
//! ```

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_engine::{Bake, Engine};
use pandastack_store::{SandboxRecord, Store, StoreError, Transition, Unfinished};
use pandastack_types::{EndReason, SandboxId, SnapshotId, State, TtlMode, VolumeMount};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use crate::boot::WOKEN;
use crate::custody::Remains;
use crate::error::{Chain, StartError};
use crate::fault::{self, Point};
use crate::hibernate::place;
use crate::launch::MAILBOX;
use crate::limits::Limits;
use crate::manager::Core;
use crate::owner::{Message, Owner};
use crate::sandbox::{Birth, Sandbox, Status};
use crate::snapshot::SnapshotShelf;

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

/// What a server that did not stop in good order has left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Sandboxes that are hibernated, and go on.
    pub(crate) asleep: Vec<SandboxRecord>,
    /// Sandboxes whose machines are held: nothing was done to them.
    pub(crate) alive: Vec<SandboxRecord>,
    /// Sandboxes that have ended now, in the records as well.
    pub(crate) ended: Vec<SandboxId>,
    /// Directories of machines that were removed, with their processes and control groups.
    pub(crate) machines: usize,
    /// Volumes that were taken from sandboxes that have ended, counted once for each.
    pub(crate) volumes: usize,
    /// Files of hibernated sandboxes that nobody can wake any more, which were removed.
    pub(crate) files: usize,
}

/// Ends in the records what the last server left, and removes its machines. The instance
/// directory must be taken. `held` are machines that live on, which it leaves alone if they are
/// somebody's.
pub(crate) fn clean(
    machines: &Path,
    hibernated: &SnapshotShelf,
    store: &Store,
    engine: &dyn Engine,
    held: &HashMap<SandboxId, Remains>,
) -> Result<Left, StartError> {
    let mut left = Left::default();
    for record in store.unfinished()? {
        if let Some(kept) = keep(hibernated, store, &record)? {
            left.asleep.push(kept);
            continue;
        }
        let runs = matches!(record.state, State::Running | State::Paused);
        if runs
            && held.contains_key(&record.id)
            && let Some(whole) = whole(store, record.id)?
        {
            left.alive.push(whole);
            continue;
        }
        tracing::info!(sandbox = %record.id, state = %record.state, "ended with its server");
        let reason = match runs && is_over(store, record.id)? {
            true => Some(EndReason::Ttl),
            false => record.reason.or(Some(EndReason::ServerCrash)),
        };
        end(store, record.id, record.state, reason)?;
        left.ended.push(record.id);
    }
    fault::point(Point::RecoveryRecords);
    let alive = left.alive.iter().filter_map(|record| held.get(&record.id));
    let alive: Vec<&str> = alive.map(Remains::name).collect();
    left.machines = remove_machines(machines, &alive, |machine| engine.clear(machine))
        .map_err(|source| StartError::Directory { path: machines.to_owned(), source })?;
    fault::point(Point::RecoveryMachines);
    let asleep = &left.asleep;
    // Only now, when nothing is left that could write to them.
    let kept: Vec<SandboxId> = asleep.iter().chain(&left.alive).map(|kept| kept.id).collect();
    left.volumes = store.detach_all_but(&kept)?;
    let of_nobody = |id: &SnapshotId| !asleep.iter().any(|kept| place(kept.id) == *id);
    for id in hibernated.ids().into_iter().filter(of_nobody) {
        match hibernated.remove(id) {
            Ok(()) => left.files += 1,
            Err(error) => {
                tracing::error!(%id, error = %Chain(&error), "files of a sandbox that ended are left");
            }
        }
    }
    Ok(left)
}

/// The record of a sandbox that is hibernated, brought up to date.
fn keep(
    hibernated: &SnapshotShelf,
    store: &Store,
    found: &Unfinished,
) -> Result<Option<SandboxRecord>, StartError> {
    let sleeps = matches!(found.state, State::Running | State::Paused | State::Hibernated);
    if !sleeps || hibernated.get(place(found.id)).is_err() {
        return Ok(None);
    }
    if found.state != State::Hibernated {
        write(store, Transition { to: State::Hibernated, ..step(&found.id, found.state, None) })?;
    }
    whole(store, found.id)
}

/// The record of a sandbox that could go on.
fn whole(store: &Store, id: SandboxId) -> Result<Option<SandboxRecord>, StartError> {
    match store.sandbox(id) {
        Ok(record) => Ok(record),
        // What else it was cannot be known any more.
        Err(StoreError::Damaged(what)) => {
            tracing::error!(sandbox = %id, what, "the record of a sandbox is damaged");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the time of a sandbox passed while there was no server: then it had to end, whatever it
/// was that ended it.
fn is_over(store: &Store, id: SandboxId) -> Result<bool, StartError> {
    let lifetime = whole(store, id)?.map(|record| record.lifetime);
    let counts_time = lifetime.filter(|lifetime| lifetime.ttl_mode == TtlMode::Wall);
    let ends_at = counts_time.and_then(|lifetime| lifetime.ends_at);
    Ok(ends_at.is_some_and(|end| end <= OffsetDateTime::now_utc()))
}

/// Records the end of a sandbox of which nothing is left, or is about to be.
pub(crate) fn end(
    store: &Store,
    id: SandboxId,
    mut from: State,
    reason: Option<EndReason>,
) -> Result<(), StartError> {
    if from != State::Stopping {
        write(store, Transition { to: State::Stopping, ..step(&id, from, reason) })?;
        fault::point(Point::RecoveryEnding);
        from = State::Stopping;
    }
    write(store, Transition { to: State::Deleted, ..step(&id, from, reason) })
}

impl Core {
    /// Owns a sandbox that hibernated under another server.
    pub(crate) fn take_over(self: &Arc<Self>, record: SandboxRecord) {
        let id = record.id;
        let kept = self.hibernated.get(place(id)).ok();
        let slept = kept.as_ref().map(|kept| OffsetDateTime::now_utc() - kept.view.created_at);
        let volumes = kept.as_ref().map(|kept| kept.volumes.clone()).unwrap_or_default();
        let ancestor = kept.and_then(|kept| self.ancestor(&kept.view, record.size));
        let Some(ancestor) = ancestor else {
            tracing::error!(
                sandbox = %id, template = %record.template,
                "hibernated, and its template is not here: it is kept until a start finds it"
            );
            return;
        };
        let (sandbox, mailbox) = self.remember(record, ancestor, volumes, WOKEN);
        let now = Instant::now();
        sandbox.clock.pause(now);
        // Nobody has used it since it was made files.
        let unused = slept.and_then(|slept| Duration::try_from(slept).ok()).unwrap_or_default();
        sandbox.used_at(now.checked_sub(unused).unwrap_or(now));
        sandbox.publish(Status { state: State::Hibernated, reason: None });
        // Nobody can have ordered a shutdown yet.
        if self.register(sandbox.clone()).is_ok() {
            let owner = Owner { core: self.clone(), sandbox, mailbox, link: None };
            self.tasks.spawn(owner.run(None));
        }
    }

    /// The sandbox of a record as it was under the last server, and where its owner gets orders.
    /// It has no machine and no state yet.
    pub(crate) fn remember(
        &self,
        record: SandboxRecord,
        ancestor: Arc<Bake>,
        volumes: Vec<VolumeMount>,
        boot_mode: &'static str,
    ) -> (Arc<Sandbox>, mpsc::Receiver<Message>) {
        let birth = Birth {
            id: record.id,
            template: record.template,
            size: record.size,
            metadata: record.metadata,
            created_at: record.created_at,
            engine: self.engine.name(),
            isolation: self.engine.isolation(),
            jail: self.config.jail,
            ancestor,
            from_snapshot: record.from_snapshot,
            volumes,
        };
        let (at, now) = (OffsetDateTime::now_utc(), Instant::now());
        let limits = Limits::remembered(&record.lifetime, self.config.default_ttl_seconds, at, now);
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let log_bytes = self.config.log_bytes;
        let sandbox = Sandbox::new(birth, limits, record.egress, boot_mode, log_bytes, sender);
        (Arc::new(sandbox), mailbox)
    }
}

fn step(id: &SandboxId, from: State, reason: Option<EndReason>) -> Transition {
    Transition { id: *id, from, to: State::Deleted, reason, at: OffsetDateTime::now_utc() }
}

/// Records that say less than they should must not keep the server from starting.
fn write(store: &Store, change: Transition) -> Result<(), StartError> {
    match store.transition(&change) {
        Ok(()) | Err(StoreError::Missing) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `clear` removes what the machine of this name left outside its directory. Those that are `alive`
/// stay. Returns how many others there were.
fn remove_machines(machines: &Path, alive: &[&str], clear: impl Fn(&str)) -> io::Result<usize> {
    match std::fs::read_dir(machines) {
        Ok(entries) => {
            let mut removed = 0;
            for entry in entries {
                let entry = entry?;
                let (path, name) = (entry.path(), entry.file_name());
                let name = name.to_string_lossy();
                if alive.contains(&&*name) {
                    continue;
                }
                // A scratch directory, that of the proof of forks, has machines below it.
                for below in directories(&path) {
                    kill_leftover(&path.join(&below));
                    clear(&below);
                }
                kill_leftover(&path);
                clear(&name);
                std::fs::remove_dir_all(&path)?;
                removed += 1;
            }
            Ok(removed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().mode(0o700).create(machines)?;
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

/// Names of the directories in a directory.
fn directories(dir: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.file_name().to_string_lossy().into_owned())
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
    fn what_the_machines_of_a_scratch_directory_left_is_cleared_as_well() {
        let root = tempfile::tempdir().unwrap();
        let machines = root.path().join("machines");
        std::fs::create_dir_all(machines.join("scratch/copy")).unwrap();
        std::fs::create_dir_all(machines.join("held")).unwrap();
        std::fs::write(machines.join("scratch/file"), "").unwrap();
        let cleared = std::cell::RefCell::new(Vec::new());
        let clear = |name: &str| cleared.borrow_mut().push(name.to_owned());
        assert_eq!(remove_machines(&machines, &["held"], clear).unwrap(), 1);
        assert_eq!(*cleared.borrow(), ["copy", "scratch"]);
        assert!(machines.join("held").exists() && !machines.join("scratch").exists());
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
        assert_eq!(remove_machines(&machines, &[], |_| {}).unwrap(), 2);
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
