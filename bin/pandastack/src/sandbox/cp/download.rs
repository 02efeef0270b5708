//! Guest to host.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, bail};

use super::guest::{Guest, Kind, kind};
use super::host_dir::HostDir;
use super::location::{SafeName, join, last_name};
use super::transfer::Transfer;

/// The deepest tree that is copied: a guest can pretend one without end.
const MAX_DEPTH: usize = 100;

/// Copies `source`, a file or directory of the guest, to `target` on this host.
pub async fn download(
    guest: &Guest<'_>,
    source: &str,
    target: &Path,
    transfer: &mut Transfer,
) -> anyhow::Result<()> {
    let Some(entry) = guest.stat(source).await? else { bail!("the sandbox has no {source}") };
    let (dir, name) = destination(source, target)?;
    match kind(&entry) {
        Kind::Directory => download_tree(guest, source.to_owned(), dir, name, transfer).await,
        Kind::File { executable } => {
            transfer.file(&name, entry.size);
            download_file(guest, source, &dir, &name, executable, transfer).await
        }
        Kind::Other => bail!("{source} is neither a file nor a directory"),
    }
}

/// The host directory that gets the copy, and the copy's name there.
fn destination(source: &str, target: &Path) -> anyhow::Result<(HostDir, SafeName)> {
    if target.is_dir() || target.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let name = last_name(source)
            .with_context(|| format!("{source} has no name; give the copy one"))?;
        return Ok((HostDir::open(target)?, name));
    }
    let name = target.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} cannot name a copy", target.display()))?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok((HostDir::open(parent.unwrap_or(Path::new(".")))?, SafeName::new(name)?))
}

async fn download_tree(
    guest: &Guest<'_>,
    source: String,
    parent: HostDir,
    name: SafeName,
    transfer: &mut Transfer,
) -> anyhow::Result<()> {
    // Depth first, and each directory is opened when its turn comes: as many descriptors as the
    // tree is deep, however wide it is.
    let mut pending = vec![(source, Rc::new(parent), name, 1)];
    while let Some((source, parent, name, depth)) = pending.pop() {
        let dir = Rc::new(parent.enter(&name)?);
        for entry in guest.list(&source).await? {
            let name = SafeName::new(&entry.name)?;
            let path = join(&source, name.as_str());
            match kind(&entry) {
                Kind::Directory if depth == MAX_DEPTH => {
                    bail!("{} is deeper than {MAX_DEPTH} directories", path.escape_debug());
                }
                Kind::Directory => pending.push((path, dir.clone(), name, depth + 1)),
                Kind::File { executable } => {
                    transfer.file(&name, entry.size);
                    download_file(guest, &path, &dir, &name, executable, transfer).await?;
                }
                Kind::Other => {
                    let shown = path.escape_debug();
                    transfer.leave_out(shown, "it is neither a file nor a directory");
                }
            }
        }
    }
    Ok(())
}

async fn download_file(
    guest: &Guest<'_>,
    source: &str,
    dir: &HostDir,
    name: &SafeName,
    executable: bool,
    transfer: &Transfer,
) -> anyhow::Result<()> {
    let counter = transfer.counter();
    let mut reply = guest.read(source).await?;
    let mut file = dir.create(name, executable)?;
    while let Some(bytes) = reply.chunk().await? {
        file.write(&bytes).await?;
        counter.advance(bytes.len());
    }
    file.finish().await
}
