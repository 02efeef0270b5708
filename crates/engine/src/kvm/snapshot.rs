//! Writing a copy that stands still into a directory, as a bake.
//!
//! ```text
//!   memory       another name of the template's            never copied, never a chain:
//!   memory.diff  pages that differ, written by the copy     one diff, the older one merged in
//!   disk, layer-* other names of the machine's              state, written by the copy
//!   volume-*      the same of volumes
//!   machine.json last, with the hashes of what is new
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use pandastack_vmm::control::{Request, Role};

use super::client::{Attached, SAVE, attach};
use super::fork::{Copy, Family};
use super::manifest::WORKING_SET;
use super::monitor::Monitor;
use crate::error::file_error;
use crate::files::{DIFF, MEMORY, STATE};
use crate::{EngineError, disk, sparse};

/// Writes the copy into the existing empty directory `out`.
pub(super) async fn save(family: &Family, copy: &Copy, out: &Path) -> Result<(), EngineError> {
    save_machine(&copy.monitor, out, (Role::Diff, DIFF)).await?;
    for disk in &copy.body.disks {
        let (to, bytes) = (disk.place(out), disk.layers.bytes());
        disk.layers.link_into(&to)?;
        blocking(move || disk::flatten(&to, bytes)).await?;
    }
    let base = family.bake.dir.join(MEMORY);
    let target = out.join(MEMORY);
    match sparse::share(&base, &target) {
        // The snapshot that it came from was deleted meanwhile.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let memory = family.files.memory.try_clone().map_err(EngineError::Spawn)?;
            let to = target.clone();
            blocking(move || {
                sparse::share_open(&memory, &to).map_err(|e| file_error("link", &to, e))
            })
            .await?;
        }
        linked => linked.map_err(|e| file_error("link", &target, e))?,
    }
    let mut manifest = family.files.manifest.clone();
    // Written anew: the older ones are of the machine that it was made of.
    for name in [STATE, DIFF, WORKING_SET] {
        manifest.files.remove(name);
    }
    let out = out.to_owned();
    blocking(move || manifest.complete(&out)).await
}

/// Has a machine that stands still write its state and its memory to new files in `out`.
pub(super) async fn save_machine(
    monitor: &Monitor,
    out: &Path,
    memory: (Role, &str),
) -> Result<(), EngineError> {
    let state = new_file(&out.join(STATE))?;
    let pages = new_file(&out.join(memory.1))?;
    let pagemap = pagemap(monitor);
    let mut attached = Attached::new();
    attach(&mut attached, Role::State, [&state]);
    attach(&mut attached, memory.0, [&pages]);
    // Without it the monitor writes every page, which is as right and takes longer.
    attach(&mut attached, Role::Pagemap, &pagemap);
    monitor.client.done(Request::Save, attached, SAVE).await
}

/// The list of pages of a monitor, which it cannot open itself: its jail has no such file. An
/// ordinary user's server may not be let either.
pub(super) fn pagemap(monitor: &Monitor) -> Option<File> {
    let path = format!("/proc/{}/pagemap", monitor.process.pid());
    File::open(&path).inspect_err(|error| tracing::debug!(path, %error, "no list of pages")).ok()
}

/// Makes a file that nobody else may look into.
pub(super) fn new_file(path: &Path) -> Result<File, EngineError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|e| file_error("create", path, e))
}

/// Does what takes long where it does not hold up others.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|gone| Err(EngineError::Ended(gone.to_string())))
}
