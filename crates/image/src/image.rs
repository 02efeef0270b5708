//! Images: a root and an agent, ready to boot.
//!
//! A root's directory is named after what it was made *from*, so that it need not be built to
//! be found. The same packages differ from one day to the next, though, and a bake has parts of
//! the root in its memory: so an image is named after the bytes of its root.

use std::fs::{self, File};
use std::path::Path;

use pandastack_engine::GuestImage;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::initramfs::{self, LAYOUT_VERSION, Module};
use crate::recipe::Recipe;
use crate::shelf::{Kind, Shelf};

const ROOT: &str = "root.erofs";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.cpio";
const MODULES: &str = "modules";
const ORDER: &str = "order";

/// What is written next to a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootManifest {
    /// Digest of the bytes of file system, kernel and modules.
    pub(crate) content: String,
    /// Debian release, for people.
    pub(crate) suite: String,
    /// Packages asked for, for people.
    pub(crate) packages: Vec<String>,
}

/// What is written next to an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageManifest {
    /// Key of the root.
    pub(crate) root: String,
    /// Digest of its bytes.
    pub(crate) content: String,
}

/// Reads a freshly built root and describes it.
pub(crate) fn describe_root(dir: &Path, recipe: &Recipe) -> Result<RootManifest, ImageError> {
    let mut hasher = blake3::Hasher::new();
    for name in [ROOT, KERNEL] {
        let path = dir.join(name);
        let file = File::open(&path).map_err(ImageError::file("open", &path))?;
        // The digest of each file, so that bytes cannot move from one to the next.
        let mut inner = blake3::Hasher::new();
        inner.update_reader(file).map_err(ImageError::file("read", &path))?;
        hasher.update(inner.finalize().as_bytes());
    }
    for (name, content) in read_modules(dir)? {
        hasher.update(blake3::hash(name.as_bytes()).as_bytes());
        hasher.update(blake3::hash(&content).as_bytes());
    }
    Ok(RootManifest {
        content: hasher.finalize().to_hex().to_string(),
        suite: recipe.suite.clone(),
        packages: recipe.packages.clone(),
    })
}

/// The image that `recipe` and `agent` make of a root: where its files are or will be.
pub(crate) fn image_of(
    shelf: &Shelf,
    recipe: &Recipe,
    root_key: &str,
    root: &RootManifest,
    agent: &[u8],
) -> GuestImage {
    let digest = digest(recipe, root, agent);
    let root_dir = shelf.path(Kind::Root, root_key);
    GuestImage {
        kernel: root_dir.join(KERNEL),
        initrd: shelf.path(Kind::Image, &digest).join(INITRD),
        root: root_dir.join(ROOT),
        preload: recipe.preload.clone(),
        warm_up: recipe.warm_up.clone(),
        digest,
    }
}

/// Writes the initramfs of an image into `out`.
pub(crate) fn write_initrd(root_dir: &Path, agent: &[u8], out: &Path) -> Result<(), ImageError> {
    let archive = initramfs::write(agent, &read_modules(root_dir)?);
    let path = out.join(INITRD);
    fs::write(&path, archive).map_err(ImageError::file("write", &path))
}

/// Content address of everything a [`GuestImage`] holds.
fn digest(recipe: &Recipe, root: &RootManifest, agent: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(b"image");
    field(&LAYOUT_VERSION.to_le_bytes());
    field(root.content.as_bytes());
    field(agent);
    for lines in [&recipe.preload, &recipe.warm_up] {
        field(&(lines.len() as u64).to_le_bytes());
        lines.iter().for_each(|line| field(line.as_bytes()));
    }
    hasher.finalize().to_hex().to_string()
}

/// The modules of a root, in load order.
fn read_modules(root_dir: &Path) -> Result<Vec<Module>, ImageError> {
    let dir = root_dir.join(MODULES);
    let order = dir.join(ORDER);
    let names = fs::read_to_string(&order).map_err(ImageError::file("read", &order))?;
    let read = |name: &str| {
        let path = dir.join(name);
        let content = fs::read(&path).map_err(ImageError::file("read", &path))?;
        Ok((name.to_owned(), content))
    };
    names.lines().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(from: &str, to: &str) -> Recipe {
        const TEXT: &str = r#"
            name = "t"
            description = "d"
            suite = "trixie"
            packages = ["bash"]
            cpu = 1
            memory_mb = 512
            disk_mb = 2048
            preload = ["a"]
            warm_up = ["b"]
        "#;
        Recipe::parse(&TEXT.replace(from, to)).unwrap()
    }

    fn root(content: &str) -> RootManifest {
        RootManifest { content: content.into(), suite: "trixie".into(), packages: vec![] }
    }

    #[test]
    fn an_image_is_addressed_by_everything_in_it() {
        let same = digest(&recipe("", ""), &root("r"), b"agent");
        assert_eq!(digest(&recipe("\"d\"", "\"e\""), &root("r"), b"agent"), same);
        assert_eq!(digest(&recipe("512", "1024"), &root("r"), b"agent"), same);
        assert_ne!(digest(&recipe("", ""), &root("s"), b"agent"), same);
        assert_ne!(digest(&recipe("", ""), &root("r"), b"other"), same);
        assert_eq!(digest(&recipe("2048", "4096"), &root("r"), b"agent"), same);
        assert_ne!(digest(&recipe("[\"b\"]", "[\"c\"]"), &root("r"), b"agent"), same);
        assert_ne!(digest(&recipe("[\"a\"]", "[]"), &root("r"), b"agent"), same);
        let swapped = recipe("[\"a\"]\n            warm_up = [\"b\"]", "[\"a\", \"b\"]");
        assert_ne!(digest(&swapped, &root("r"), b"agent"), same);
    }

    #[test]
    fn a_root_is_described_by_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join(MODULES);
        fs::create_dir(&modules).unwrap();
        fs::write(modules.join(ORDER), "m.ko.xz\n").unwrap();
        for path in [dir.path().join(ROOT), dir.path().join(KERNEL), modules.join("m.ko.xz")] {
            fs::write(&path, "x").unwrap();
            let before = describe_root(dir.path(), &recipe("", "")).ok();
            fs::write(&path, "y").unwrap();
            let after = describe_root(dir.path(), &recipe("", "")).ok();
            assert!(before.is_none() || before != after, "{}", path.display());
        }
        assert!(describe_root(dir.path(), &recipe("", "")).is_ok());
    }
}
