//! Machines that outlive their server: what is written down of them, and how the next one goes on.
//!
//! Nothing that changes is written down: the layers of a disk are those in the machine's or the
//! volume's directory, whether it runs is QEMU's to say. A machine that was being copied when its server died
//! is marked ([`COPYING`]) and not taken over, and neither is one whose monitor does not answer.

use std::path::Path;
use std::sync::Arc;

use pandastack_fork::FileId;
use pandastack_jail::Child;
use serde::{Deserialize, Serialize};

use super::channels::{Identities, Ours};
use super::disk::{Noted, QemuDisk};
use super::fork::{Body, COPYING, Copy, Family};
use super::machine::QemuMachine;
use super::process::{Channels, Emulator, Host};
use crate::{Bake, EngineError, Kept, files};

/// What the next server is told of a machine.
#[derive(Serialize, Deserialize)]
struct Note {
    bake: Bake,
    /// `st_dev` and `st_ino` of each.
    common: Vec<(u64, u64)>,
    identities: Vec<(u64, u64)>,
    disks: Vec<Noted>,
    generation: u32,
}

fn numbers(file: &FileId) -> (u64, u64) {
    (file.device, file.inode)
}

fn file((device, inode): (u64, u64)) -> FileId {
    FileId { device, inode }
}

/// The note of a machine.
pub(super) fn note(family: &Family, body: &Body) -> String {
    let note = Note {
        bake: family.bake.clone(),
        common: family.common.iter().map(numbers).collect(),
        identities: body.identities.iter().map(numbers).collect(),
        disks: body.disks.iter().map(QemuDisk::noted).collect(),
        generation: body.generation,
    };
    // Paths that are no text are the one thing that cannot be written down.
    serde_json::to_string(&note).unwrap_or_default()
}

/// Takes over a machine that another server left.
pub(super) async fn adopt(
    host: &Arc<Host>,
    dir: &Path,
    kept: Kept,
) -> Result<QemuMachine, EngineError> {
    let refused = |why: &str| EngineError::NotAdopted(why.to_owned());
    if dir.join(COPYING).exists() {
        return Err(refused("it was being copied"));
    }
    let note: Note = serde_json::from_str(&kept.note)
        .map_err(|_| refused("what was written down of it is damaged"))?;
    let identities: Identities = note
        .identities
        .into_iter()
        .map(file)
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|_| refused("what was written down of it is damaged"))?;
    let [pidfd, lifeline, memory, channels @ ..]: [_; 8] =
        kept.descriptors.try_into().map_err(|_| refused("ways to it are missing"))?;
    let child = Child::from_pidfd(pidfd).map_err(|_| refused("its process has ended"))?;
    let disks = note.disks.into_iter().map(|noted| QemuDisk::in_use(dir, noted));
    let disks = disks.collect::<Result<_, _>>()?;
    let family = Arc::new(Family {
        host: host.clone(),
        bake: note.bake,
        common: note.common.into_iter().map(file).collect(),
        memory: Arc::new(memory),
        lifeline,
    });
    let channels = Channels::new(Ours::from_copies(channels))?;
    let group = host.left_group(&files::name_of(dir));
    let mut emulator = Emulator::adopted(child, channels, identities, group).await?;
    let missing = || EngineError::Ended("its control socket was taken".into());
    let control = emulator.control.take().ok_or_else(missing)?;
    let status = emulator.qmp.execute("query-status", serde_json::Value::Null).await?;
    let running = status["running"] == true;
    let (dir, generation) = (dir.to_owned(), note.generation);
    let body = Body { control, identities, disks, dir, running, generation };
    QemuMachine::adopt(family, Copy { emulator, body }, None)
}
