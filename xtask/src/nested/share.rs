//! Folders and files of the host that a machine sees: packed into images, again only when they
//! changed.
//!
//! Invariant: each of them has one place in the cache, and the image in it is that of the key
//! beside it. A new image takes the place of the old one, which a running machine keeps open.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result};

use super::{cache, hash};
use crate::run::{must, step};

/// Bytes of a block of an image.
const BLOCK: u64 = 4096;

/// What an image of a single file calls it.
pub const FILE: &str = "file";

/// A folder or file and its name in `/share`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub host: PathBuf,
    pub name: String,
}

impl FromStr for Share {
    type Err = String;

    /// Reads `PATH` or `PATH:NAME`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (host, name) = match text.rsplit_once(':') {
            Some((host, name)) => (host, Some(name.to_owned())),
            None => (text, None),
        };
        let host = fs::canonicalize(host).map_err(|error| format!("{host}: {error}"))?;
        let own = || host.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.or_else(own).unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("{name:?} cannot be a name in /share: give one as PATH:NAME"));
        }
        if !host.is_dir() && !host.is_file() {
            return Err(format!("{} is neither a folder nor a file", host.display()));
        }
        Ok(Self { host, name })
    }
}

impl Share {
    /// The image of the folder or file as it is now.
    pub fn image(&self) -> Result<PathBuf> {
        let shelf = cache()?.join("shares");
        fs::create_dir_all(&shelf)?;
        let place = shelf.join(format!("{:016x}", hash(&self.host)));
        let lock = File::create(place.with_extension("lock"))?;
        lock.lock()?;
        let (image, key) = (place.with_extension("ext4"), place.with_extension("key"));
        let mut content = Content::default();
        content.read(&self.host)?;
        let wanted = format!("{}\n{:016x}\n", self.host.display(), content.hasher.finish());
        if image.exists() && fs::read_to_string(&key).is_ok_and(|found| found == wanted) {
            return Ok(image);
        }
        step(&format!("packing {} ({} MiB)", self.host.display(), content.bytes >> 20));
        let _ = fs::remove_file(&key);
        let fresh = place.with_extension("new");
        if self.host.is_dir() {
            content.pack(&self.host, &fresh)?;
        } else {
            let alone = place.with_extension("alone");
            let _ = fs::remove_dir_all(&alone);
            fs::create_dir(&alone)?;
            fs::copy(&self.host, alone.join(FILE))?;
            content.pack(&alone, &fresh)?;
            fs::remove_dir_all(&alone)?;
        }
        fs::rename(&fresh, &image)?;
        fs::write(key, wanted)?;
        Ok(image)
    }
}

/// What a folder or file holds: enough to tell it from another and to size its image.
#[derive(Default)]
struct Content {
    hasher: DefaultHasher,
    /// On disk: holes are free.
    bytes: u64,
    inodes: u64,
}

impl Content {
    fn read(&mut self, path: &Path) -> Result<()> {
        let unreadable = || format!("cannot read {}", path.display());
        let meta = path.symlink_metadata().with_context(unreadable)?;
        path.file_name().hash(&mut self.hasher);
        (meta.mode(), meta.size(), meta.ino()).hash(&mut self.hasher);
        self.inodes += 1;
        if !meta.is_dir() {
            (meta.mtime(), meta.mtime_nsec()).hash(&mut self.hasher);
            self.bytes += (meta.blocks() * 512).next_multiple_of(BLOCK);
            return Ok(());
        }
        self.bytes += meta.size().next_multiple_of(BLOCK);
        let entries = fs::read_dir(path).with_context(unreadable)?;
        let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        paths.len().hash(&mut self.hasher);
        paths.iter().try_for_each(|path| self.read(path))
    }

    /// Makes an image with room for file system structures; what stays free is a hole.
    fn pack(&self, dir: &Path, image: &Path) -> Result<()> {
        let room = self.bytes / 8 + self.inodes * 1024 + (64 << 20);
        File::create(image)?.set_len(self.bytes + room)?;
        must(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0", "-b", &BLOCK.to_string()])
                .args(["-O", "^has_journal,^metadata_csum,^resize_inode"])
                .args(["-E", "nodiscard", "-N", &(self.inodes + 64).to_string(), "-d"])
                .arg(dir)
                .arg(image),
        )?;
        // The only thing in there that is not the host's.
        let mut remove = Command::new("debugfs");
        must(remove.args(["-w", "-R", "rmdir lost+found"]).arg(image).stderr(Stdio::null()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::run::workspace;

    #[test]
    fn shares_have_plain_names() {
        let share: Share = "/tmp".parse().unwrap();
        assert_eq!((share.host.as_path(), &*share.name), (Path::new("/tmp"), "tmp"));
        let share: Share = "/tmp:other".parse().unwrap();
        assert_eq!(share.name, "other");
        for bad in ["/tmp:a/b", "/tmp:", "/tmp:..", "/", "/nowhere", "/dev/null"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_of_content_changes_the_key() {
        let key = |path: &Path| {
            let mut content = Content::default();
            content.read(path).unwrap();
            content.hasher.finish()
        };
        let dir = workspace().join("target/nested-key-test");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("a/b")).unwrap();
        let mut seen = vec![key(&dir)];
        let mut changed = |what: &str| {
            let new = key(&dir);
            assert_eq!(new, key(&dir), "{what}");
            assert!(!seen.contains(&new), "{what}");
            seen.push(new);
        };
        fs::write(dir.join("a/x"), "1").unwrap();
        changed("a file more");
        fs::write(dir.join("a/x"), "22").unwrap();
        changed("a file's text");
        fs::rename(dir.join("a/x"), dir.join("a/b/x")).unwrap();
        changed("a file's folder");
        fs::set_permissions(dir.join("a/b/x"), fs::Permissions::from_mode(0o755)).unwrap();
        changed("a file's mode");
        fs::remove_dir_all(dir).unwrap();
    }
}
