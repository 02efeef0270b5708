//! What every level-1 machine boots: a kernel, an initramfs and a root, made once.
//!
//! ```text
//! backports ──apt──▶ kernel ──▶ vmlinuz, initramfs.cpio (modules and busybox)
//! bookworm ──mmdebstrap──▶ tree ──▶ root.erofs
//! ```
//!
//! Invariant: a folder is named by its recipe, has a stamp once it is complete, and does not change
//! from then on: machines run from it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{cache, hash};
use crate::apt;
use crate::run::{must, step};

/// Has a kernel with PAGEMAP_SCAN (6.7); bookworm's own is 6.1.
const KERNEL_SUITE: &str = "bookworm-backports";
/// Enough drivers for a virtual machine and for KVM, and few others.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What level 1 has devices for, and what is tested in it.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "erofs",
    "ext4",
    "overlay",
    "kvm-amd",
    "vhost_vsock",
    "tun",
    "loop",
    "fuse",
];
/// The host's own release, so that what was built here runs there.
const ROOT_SUITE: &str = apt::DISTRIBUTION;
const ROOT_PACKAGES: &str = "bash,busybox-static,coreutils,e2fsprogs,iproute2,kmod,mount,procps,\
                             psmisc,python3,strace,util-linux";
/// Not worth their bytes.
const LEFT_OUT: [&str; 4] = ["doc", "info", "locale", "man"];
/// Run on the finished tree. What is mounted in it, and apt's indexes, stay out of the image.
const PACK_ROOT: &str = r#"mkdir "$1/.nested" && mkfs.erofs --quiet -x-1 \
    --exclude-regex='^(\.nested|(dev|proc|sys|run|tmp|var/cache|var/lib/apt)/.+)' \
    "$1/.nested/root.erofs" "$1""#;
const INITRAMFS: &str = include_str!("initramfs.sh");

/// Files that a machine boots from.
pub struct Base {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub root: PathBuf,
}

impl Base {
    /// Makes the files unless they are there.
    pub fn ensure() -> Result<Self> {
        let recipe = format!("{ROOT_SUITE}\n{ROOT_PACKAGES}\n{LEFT_OUT:?}\n{PACK_ROOT}");
        let root = made("root", &recipe, make_root)?;
        let recipe = format!("{KERNEL_SUITE}\n{KERNEL}\n{MODULES:?}\n{INITRAMFS}");
        let busybox = root.join("busybox");
        let kernel = made("kernel", &recipe, |dir| make_kernel(dir, &busybox))?;
        Ok(Self {
            kernel: kernel.join("vmlinuz"),
            initramfs: kernel.join("initramfs.cpio"),
            root: root.join("root.erofs"),
        })
    }
}

/// The cache's folder of what `name` is when made of `recipe`. Other processes that want it too
/// wait for the first.
fn made(name: &str, recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let dir = cache()?.join(format!("{name}-{:016x}", hash(recipe)));
    let lock = File::create(dir.with_extension("lock"))?;
    lock.lock()?;
    let stamp = dir.join("stamp");
    if stamp.exists() {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir(&dir)?;
    make(&dir)?;
    fs::write(stamp, recipe)?;
    Ok(dir)
}

fn make_root(dir: &Path) -> Result<()> {
    step(&format!("making a root of {ROOT_SUITE} (a minute or two)"));
    let mut command = Command::new("mmdebstrap");
    command.current_dir(dir).args(["--quiet", "--variant=minbase", "--format=null"]);
    command.arg(format!("--include={ROOT_PACKAGES}"));
    command.args(LEFT_OUT.map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")));
    command.arg(format!("--customize-hook={PACK_ROOT}"));
    command.arg("--customize-hook=download /.nested/root.erofs root.erofs");
    command.arg("--customize-hook=download /bin/busybox busybox");
    command.args([ROOT_SUITE, "-"]);
    // The host's mirror, if it has one of that release, instead of mmdebstrap's default.
    command.args(apt::mirrors().unwrap_or_default().first());
    must(&mut command)
}

fn make_kernel(dir: &Path, busybox: &Path) -> Result<()> {
    step(&format!("unpacking a kernel of {KERNEL_SUITE}"));
    let unpacked = dir.join("package");
    apt::unpack(KERNEL_SUITE, &[KERNEL], &unpacked)?;
    let mut images = fs::read_dir(unpacked.join("boot"))?.flatten().map(|entry| entry.path());
    let image = images.find(|path| path.file_name().is_some_and(is_vmlinuz));
    fs::rename(image.context("the kernel's package has no image")?, dir.join("vmlinuz"))?;
    let mut script = Command::new("sh");
    script.current_dir(dir).args(["-c", INITRAMFS, "initramfs.sh"]);
    must(script.arg(busybox).arg(&unpacked).args(MODULES))?;
    Ok(fs::remove_dir_all(unpacked)?)
}

fn is_vmlinuz(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"vmlinuz-")
}
