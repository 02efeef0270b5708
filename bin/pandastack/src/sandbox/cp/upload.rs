//! Host to guest.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rustix::fs::OFlags;
use tokio_util::io::ReaderStream;

use super::guest::{Guest, Kind, kind};
use super::location::join;
use super::transfer::Transfer;
use crate::client::RequestBody;

/// How much of a file is read at once.
const READ_LEN: usize = 256 << 10;

/// Copies `source`, a file or directory, to `target` in the guest.
pub async fn upload(
    guest: &Guest<'_>,
    source: &Path,
    target: &str,
    transfer: &mut Transfer,
) -> anyhow::Result<()> {
    // Followed if it is a link: the user named it.
    let metadata =
        fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
    let target = destination(guest, source, target).await?;
    // Marked when all files are there: one command for many.
    let mut programs = Vec::new();
    if metadata.is_dir() {
        upload_tree(guest, source, target, transfer, &mut programs).await?;
    } else {
        ensure!(metadata.is_file(), "{} is neither a file nor a directory", source.display());
        upload_file(guest, source, target, OFlags::empty(), transfer, &mut programs).await?;
    }
    guest.make_executable(&programs).await
}

/// `target` itself, or a place in it when it is a directory.
async fn destination(guest: &Guest<'_>, source: &Path, target: &str) -> anyhow::Result<String> {
    let is_directory = target.ends_with('/')
        || guest.stat(target).await?.is_some_and(|entry| kind(&entry) == Kind::Directory);
    if !is_directory {
        return Ok(target.to_owned());
    }
    let source =
        source.canonicalize().with_context(|| format!("cannot read {}", source.display()))?;
    let name = source.file_name().context("the root directory has no name to copy it under")?;
    let name = name.to_str().with_context(|| format!("the name {name:?} is not UTF-8"))?;
    Ok(join(target, name))
}

async fn upload_tree(
    guest: &Guest<'_>,
    source: &Path,
    target: String,
    transfer: &mut Transfer,
    programs: &mut Vec<String>,
) -> anyhow::Result<()> {
    let mut pending = vec![(source.to_owned(), target)];
    while let Some((dir, target)) = pending.pop() {
        let entries = fs::read_dir(&dir)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot list {}", dir.display()))?;
        if entries.is_empty() {
            // The others appear with their first file.
            guest.make_directory(&target).await?;
            continue;
        }
        for entry in entries {
            let path: PathBuf = entry.path();
            let kind =
                entry.file_type().with_context(|| format!("cannot read {}", path.display()))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                transfer.leave_out(path.display(), "its name is not UTF-8");
                continue;
            };
            let target = join(&target, name);
            if kind.is_dir() {
                pending.push((path, target));
            } else if kind.is_file() {
                upload_file(guest, &path, target, OFlags::NOFOLLOW, transfer, programs).await?;
            } else {
                transfer.leave_out(path.display(), "it is neither a file nor a directory");
            }
        }
    }
    Ok(())
}

async fn upload_file(
    guest: &Guest<'_>,
    source: &Path,
    target: String,
    flags: OFlags,
    transfer: &mut Transfer,
    programs: &mut Vec<String>,
) -> anyhow::Result<()> {
    let open = || {
        // Not blocking, in case a named pipe has taken the file's place meanwhile.
        let flags = (flags | OFlags::NONBLOCK).bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(source)?;
        let metadata = file.metadata()?;
        std::io::Result::Ok((file, metadata))
    };
    let (file, metadata) = open().with_context(|| format!("cannot read {}", source.display()))?;
    transfer.file(source.display(), metadata.len());
    guest.write(&target, file_body(file, transfer)).await?;
    if metadata.permissions().mode() & 0o100 != 0 {
        programs.push(target);
    }
    Ok(())
}

/// The file as a request body that counts its bytes.
fn file_body(file: fs::File, transfer: &Transfer) -> RequestBody {
    let counter = transfer.counter();
    let pieces = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_LEN);
    StreamBody::new(pieces.map(move |piece| {
        let piece = piece?;
        counter.advance(piece.len());
        Ok(Frame::data(piece))
    }))
    .boxed_unsync()
}
