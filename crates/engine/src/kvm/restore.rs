//! Starting a machine from a bake.

use std::path::Path;

use pandastack_vmm::control::Role;

use super::client::attach;
use super::files::Files;
use super::fork::{Body, Copy};
use super::monitor::{Host, launch};
use crate::disk::{Disk, Place};
use crate::{Bake, EngineError, files as names};

/// Restores a machine into the existing empty directory `dir`. It stands still. `group` is the
/// name of its control group.
pub(super) async fn restore(
    host: &Host,
    bake: &Bake,
    files: &Files,
    dir: &Path,
    group: &str,
) -> Result<Copy, EngineError> {
    let (disk, top) =
        Disk::create(&Place::root(&bake.dir), &Place::root(dir), bake.size.disk_bytes())?;
    let idle = launch(host, group, bake.size).await?;
    names::note_pid(dir, idle.monitor.process.pid())?;
    let mut with = files.attached();
    attach(&mut with, Role::Disk, [disk.base()]);
    attach(&mut with, Role::Layer, disk.frozen());
    attach(&mut with, Role::Top, [&top]);
    let (monitor, ways) = idle.start(host, bake.size, None, with).await?;
    let body = Body::new(dir, disk, monitor.process.child().clone());
    Ok(Copy { monitor, ways, body })
}
