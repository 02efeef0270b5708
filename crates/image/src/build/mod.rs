//! Building a root: Debian packages in, file system, kernel and modules out.
//!
//! mmdebstrap installs the packages into a tree, as root or in a user namespace, and runs
//! `finish.sh` on it, which runs `tidy.sh` inside it. Its files come out through mmdebstrap's
//! copy hooks, which write as the caller, so they need no place that another user could write to.
//!
//! Invariants: the build never mounts anything where the host can see it, and ends with this
//! process (see [`leash`]).

mod apt;
mod leash;
mod programs;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::error::ImageError;
use crate::log::BuildLog;
use crate::progress::{Stage, of_build_line};
use crate::recipe::Recipe;
use crate::workdir::{self, Workdir};

pub use programs::{MissingProgram, missing_programs};

/// Changes when this module builds something else from the same recipe and script.
const FORMAT: u32 = 1;

/// Time stamp of every file of a root: the first second of 2025.
const EPOCH: &str = "1735689600";

/// UUID of every root's file system: the same input gives the same bytes.
const UUID: &str = "70616e64-6173-7461-636b-000000000001";

/// What the guest's machine has, whichever engine makes it: a driver without a device does nothing.
/// Dependencies are added, built-in ones are left out.
const MODULES: &str = "virtio_mmio virtio_blk virtio_console virtio-rng virtio_net \
                       vmw_vsock_virtio_transport erofs overlay";

/// Runs inside mmdebstrap on the finished tree.
const FINISH: &str = include_str!("finish.sh");

/// Runs inside that tree.
const TIDY: &str = include_str!("tidy.sh");

/// What every interpreter of Python in a template runs first.
const SITE: &str = include_str!("sitecustomize.py");

/// Where to build without root when others cannot get to the data directory.
const SHARED_TMP: &str = "/var/tmp";

/// Content address of the root that `recipe` describes. What only names or sizes a template
/// is not part of it, so templates with the same packages share a root.
pub(crate) fn root_key(recipe: &Recipe) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut field = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    for text in
        ["root", &FORMAT.to_string(), EPOCH, UUID, MODULES, FINISH, TIDY, SITE, &recipe.suite]
    {
        field(text);
    }
    for list in [&recipe.packages, &recipe.prepare] {
        field(&list.len().to_string());
        list.iter().for_each(|text| field(text));
    }
    hasher.finalize().to_hex().to_string()
}

/// Directories that hold work directories of builds. `tmp` is the shelf's own.
pub(crate) fn work_parents(tmp: &Path) -> Vec<PathBuf> {
    vec![tmp.to_owned(), PathBuf::from(SHARED_TMP)]
}

/// Builds the root of `recipe` into the empty directory `out`: `root.erofs`, `vmlinuz`,
/// `modules/*.ko.xz` and `modules/order`.
pub(crate) async fn build_root(
    recipe: &Recipe,
    out: &Path,
    tmp: &Path,
    log: &BuildLog,
    progress: &(dyn Fn(Stage, &str, f32) + Send + Sync),
) -> Result<(), ImageError> {
    let scratch = Scratch::create(recipe, tmp)?;
    let include = format!("--include={}", recipe.packages.join(","));
    let mut program = Vec::new();
    if programs::is_root() {
        // A mount and a process namespace of its own, so that neither a mount nor a process in
        // the tree can be left behind. In the other mode mmdebstrap sees to that.
        program.extend(["unshare", "--mount", "--propagation=private"]);
        program.extend(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    }
    program.extend(["mmdebstrap", "--variant=minbase", "--format=null"]);
    program.push(if programs::is_root() { "--mode=root" } else { "--mode=unshare" });
    if !recipe.packages.is_empty() {
        program.push(&include);
    }
    program.extend([
        // By variable: a path may contain what a shell would not take literally.
        "--customize-hook=sh \"$PANDA_FINISH\" \"$1\"",
        "--customize-hook=copy-out /.pandastack/modules .",
        "--customize-hook=download /.pandastack/vmlinuz vmlinuz",
        "--customize-hook=download /.pandastack/root.erofs root.erofs",
        &recipe.suite,
        "-",
    ]);
    let sources = scratch.sources.as_ref().map(|path| path.to_string_lossy());
    program.extend(sources.as_deref());

    let mut disk_full = false;
    let status = leash::run(
        &program,
        |command| {
            environment(command, recipe, &scratch).current_dir(out);
        },
        |line| {
            log.line(line);
            disk_full |= line.contains("No space left on device");
            if let Some((stage, detail, fraction)) = of_build_line(line) {
                progress(stage, detail, fraction);
            }
        },
    )
    .await
    .map_err(|source| ImageError::Spawn { program: "mmdebstrap", source })?;
    if status.success() {
        return Ok(());
    }
    log.line(&format!("mmdebstrap ended with {status}"));
    let (template, log_path) = (recipe.name.clone(), log.path().to_owned());
    // Whatever failed after that failed because of it, and the last lines rarely say so.
    if disk_full {
        return Err(ImageError::DiskFull { template, log: log_path });
    }
    Err(ImageError::Build { template, log: log_path, tail: log.tail() })
}

/// Files that a build works with, apart from what it makes.
struct Scratch {
    workdir: Workdir,
    finish: PathBuf,
    sources: Option<PathBuf>,
}

impl Scratch {
    fn create(recipe: &Recipe, tmp: &Path) -> Result<Self, ImageError> {
        // Processes with the ids of a user namespace are "others" to every directory above.
        let shared = !programs::is_root() && !others_can_enter(tmp);
        let workdir = Workdir::create(if shared { Path::new(SHARED_TMP) } else { tmp })?;
        let trees = workdir.path().join(workdir::TREES);
        fs::create_dir(&trees).map_err(ImageError::file("create", &trees))?;
        open_to_others(&trees, 0o755)?;
        let finish = workdir.path().join("finish.sh");
        write(&finish, FINISH)?;
        open_to_others(&finish, 0o644)?;
        let sources = match apt::sources_for(&recipe.suite, Path::new("/etc")) {
            Some(text) => {
                let path = workdir.path().join("sources.list");
                write(&path, &text)?;
                // A mirror's address may contain a password; mmdebstrap reads it as the caller.
                open_to_others(&path, 0o600)?;
                Some(path)
            }
            None => None,
        };
        Ok(Self { workdir, finish, sources })
    }
}

/// The build's whole environment. The user's own is left out, but for how to reach the mirror.
fn environment<'a>(
    command: &'a mut Command,
    recipe: &Recipe,
    scratch: &Scratch,
) -> &'a mut Command {
    const PROXY: [&str; 5] = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
    command
        .env_clear()
        .envs(PROXY.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .env("PATH", programs::path_variable())
        .env("LC_ALL", "C.UTF-8")
        .env("TMPDIR", scratch.workdir.path().join(workdir::TREES))
        .env("SOURCE_DATE_EPOCH", EPOCH)
        .env("PANDA_FINISH", &scratch.finish)
        .env("PANDA_UUID", UUID)
        .env("PANDA_MODULES", MODULES)
        .env("PANDA_TIDY", TIDY)
        .env("PANDA_SITE", SITE)
        .env("PANDA_PREPARE", recipe.prepare.join("\n"))
}

/// Whether every directory on the way to `dir` lets any user through.
fn others_can_enter(dir: &Path) -> bool {
    dir.ancestors().all(|d| d.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0))
}

fn write(path: &Path, text: &str) -> Result<(), ImageError> {
    fs::write(path, text).map_err(ImageError::file("write", path))
}

/// Sets a mode whatever the caller's umask is.
fn open_to_others(path: &Path, mode: u32) -> Result<(), ImageError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(ImageError::file("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        name = "t"
        description = "d"
        suite = "trixie"
        packages = ["bash", "git"]
        prepare = ["true"]
        cpu = 1
        memory_mb = 512
        disk_mb = 2048
        warm_up = ["echo hi"]
    "#;

    fn key_after(from: &str, to: &str) -> String {
        root_key(&Recipe::parse(&RECIPE.replace(from, to)).unwrap())
    }

    #[test]
    fn the_address_changes_with_what_is_in_the_root() {
        let key = key_after("", "");
        assert_eq!(key.len(), 64);
        for (from, to) in [
            ("\"git\"", "\"curl\""),
            ("\"git\"", "\"git\", \"curl\""),
            ("trixie", "forky"),
            ("\"true\"", "\"false\""),
            // A line that moves from one list to the other.
            ("[\"true\"]", "[]"),
        ] {
            assert_ne!(key_after(from, to), key, "{to}");
        }
    }

    #[test]
    fn the_address_ignores_everything_else() {
        let key = key_after("", "");
        for (from, to) in [
            ("\"bash\", \"git\"", "\"git\", \"bash\", \"git\""),
            ("name = \"t\"", "name = \"u\""),
            ("\"d\"", "\"other\""),
            ("memory_mb = 512", "memory_mb = 1024"),
            ("disk_mb = 2048", "disk_mb = 4096"),
            ("echo hi", "echo ho"),
        ] {
            assert_eq!(key_after(from, to), key, "{to}");
        }
    }

    #[test]
    fn a_private_directory_is_not_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        open_to_others(&inner, 0o755).unwrap();
        open_to_others(dir.path(), 0o700).unwrap();
        assert!(!others_can_enter(&inner));
        assert!(others_can_enter(Path::new("/")));
    }
}
