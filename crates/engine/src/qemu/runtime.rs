//! The file system of a jailed QEMU: a read-only directory that holds QEMU and nothing else.
//!
//! QEMU is a dynamic program with a module for its translator and firmware images. What it needs
//! is copied once into `<runtime>/<digest>/`, named by the paths, sizes and times of the
//! originals, so that an upgraded QEMU gets a new directory and running machines keep theirs.
//!
//! QEMU may come from any prefix, such as a folder into which packages were unpacked. In the jail
//! it is always `/usr/bin/qemu-system-x86_64`: a distribution's QEMU looks for its parts below
//! `/usr`, and one that goes by its own place ends up there too.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Parts;
use crate::error::{EngineError, file_error};
use crate::files::set_mode;
use pandastack_jail::root::{self, KEEPER, make_dir};

/// QEMU's name in Debian and most other distributions.
const PROGRAM: &str = "qemu-system-x86_64";
/// Firmware: the BIOS of the microvm machine and the option ROMs that load a kernel.
const FIRMWARE: &[&str] = &["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"];
/// Where distributions keep firmware, below a prefix.
const FIRMWARE_DIRS: &[&str] = &["share/qemu", "share/seabios", "share/qemu-firmware"];
/// Loadable modules that this machine type needs, where QEMU is built with modules.
const MODULES: &[&str] = &["accel-tcg-x86_64.so"];
/// Where QEMU looks for its modules, below its prefix.
const MODULE_DIRS: &[&str] = &["lib/x86_64-linux-gnu/qemu", "lib/qemu", "lib64/qemu"];
/// Where a prefix other than the system's may have libraries.
const LIBRARY_DIRS: &[&str] = &["lib/x86_64-linux-gnu", "lib64", "lib"];
/// The prefix in the jail, and the one that the host's loader needs no help with.
const PREFIX: &str = "/usr";

/// The library that forks QEMU, in the jail.
pub(super) const FORK_LIBRARY: &str = "/panda-qemu-fork.so";

/// A jail root with QEMU in it.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    /// The directory that becomes `/`.
    pub root: PathBuf,
    /// QEMU's path in it.
    pub program: PathBuf,
    /// First line of `--version`.
    pub version: String,
    /// Stands for QEMU's own files.
    pub digest: String,
}

impl Runtime {
    /// Finds the host's QEMU and makes its directory below `dir`, with our own parts in it, unless
    /// it is there already.
    pub fn prepare(dir: &Path, parts: &Parts) -> Result<Self, EngineError> {
        let program = find_program()?;
        let version = version(&program)?;
        let files = closure(&program)?;
        let digest = digest(&files)?;
        let own = [parts.keeper, parts.fork_library].map(blake3::hash);
        let own = blake3::hash(&own.map(|hash| *hash.as_bytes()).concat());
        let root = dir.join(format!("{digest}-{}", &own.to_hex()[..8]));
        root::publish(dir, &root, |staging| stage(staging, &files, parts))?;
        Ok(Self { root, program: program_inside(), version, digest })
    }
}

/// QEMU on the search path, as an absolute path without links.
pub(super) fn find_program() -> Result<PathBuf, EngineError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(PROGRAM))
        .find(|file| file.is_file())
        .and_then(|file| fs::canonicalize(file).ok())
        .ok_or_else(|| EngineError::Host {
            what: PROGRAM.into(),
            hint: "install the package qemu-system-x86".into(),
        })
}

/// First line that QEMU prints of its version.
pub(super) fn version(program: &Path) -> Result<String, EngineError> {
    let text =
        output(with_libraries(&mut Command::new(program), prefix(program)).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Every file that QEMU opens by itself: (path in the jail, file on the host).
fn closure(program: &Path) -> Result<BTreeSet<(PathBuf, PathBuf)>, EngineError> {
    let prefix = prefix(program);
    let mut objects = vec![(program_inside(), program.to_owned())];
    objects.extend(MODULES.iter().filter_map(|name| module(prefix, name)));
    let mut files = BTreeSet::new();
    for (inside, object) in objects {
        let text = output(with_libraries(&mut Command::new("ldd"), prefix).arg(&object))?;
        files.extend(libraries(&text)?);
        files.insert((inside, object));
    }
    for name in FIRMWARE {
        let file = firmware(prefix, name).ok_or_else(|| EngineError::Host {
            what: format!("QEMU's firmware {name}"),
            hint: "install the packages qemu-system-data and seabios".into(),
        })?;
        files.insert(file);
    }
    Ok(files)
}

/// The directory that QEMU was installed into: its program is in `bin` below.
fn prefix(program: &Path) -> &Path {
    program.parent().and_then(Path::parent).unwrap_or(Path::new(PREFIX))
}

fn program_inside() -> PathBuf {
    Path::new(PREFIX).join("bin").join(PROGRAM)
}

/// A module where this QEMU has it; one without modules has it built in.
fn module(prefix: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    MODULE_DIRS
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .map(|place| (Path::new(PREFIX).join(&place), prefix.join(place)))
        .find(|(_, file)| file.is_file())
}

/// Firmware, best this QEMU's own. In the jail it is where QEMU looks first; on the host it may be
/// in the folder of another package.
fn firmware(prefix: &Path, name: &str) -> Option<(PathBuf, PathBuf)> {
    let file = [prefix, Path::new(PREFIX)]
        .into_iter()
        .flat_map(|prefix| FIRMWARE_DIRS.iter().map(|dir| prefix.join(dir).join(name)))
        .find(|file| file.is_file())?;
    Some((Path::new(PREFIX).join("share/qemu").join(name), file))
}

/// Lets the loader find the libraries of a prefix that it does not know.
fn with_libraries<'a>(command: &'a mut Command, prefix: &Path) -> &'a mut Command {
    if prefix == Path::new(PREFIX) {
        return command;
    }
    let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // An empty entry would mean the current directory.
    let inherited = std::env::split_paths(&inherited).filter(|dir| !dir.as_os_str().is_empty());
    let own = LIBRARY_DIRS.iter().map(|dir| prefix.join(dir));
    match std::env::join_paths(own.chain(inherited)) {
        Ok(path) => command.env("LD_LIBRARY_PATH", path),
        Err(_) => command,
    }
}

/// Shared libraries and the loader in what ldd(1) printed: (path in the jail, file on the host).
///
/// In the jail there is neither an environment nor the loader's cache. Every library goes by its
/// name into the folder of the C library, where the loader looks in any case.
fn libraries(text: &str) -> Result<Vec<(PathBuf, PathBuf)>, EngineError> {
    // Lines read `name => /path (address)`, `name => not found`, `/path/of/loader (address)` or,
    // where there is no file, `name (address)`.
    let lines = text.lines().map(|line| {
        let (name, place) = line.trim().split_once(" => ").unwrap_or(("", line.trim()));
        let file = place.split(" (").next().filter(|file| file.starts_with('/'));
        (name, file.map(PathBuf::from))
    });
    let dir = lines
        .clone()
        .find(|(name, _)| *name == "libc.so.6")
        .and_then(|(_, file)| Some(file?.parent()?.to_owned()))
        .unwrap_or_else(|| "/lib".into());
    let mut files = Vec::new();
    for (name, file) in lines {
        match file {
            Some(loader) if name.is_empty() => files.push((loader.clone(), loader)),
            Some(file) => files.push((dir.join(name), file)),
            None if name.is_empty() => {}
            None => {
                return Err(EngineError::Host {
                    what: format!("QEMU's library {name}"),
                    hint: "install the package that has it".into(),
                });
            }
        }
    }
    Ok(files)
}

fn output(command: &mut Command) -> Result<String, EngineError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let unusable = |hint: String| EngineError::Host { what: program.clone(), hint };
    let output = command.env("LC_ALL", "C").output().map_err(|e| unusable(e.to_string()))?;
    if !output.status.success() {
        return Err(unusable(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn digest(files: &BTreeSet<(PathBuf, PathBuf)>) -> Result<String, EngineError> {
    let mut hash = blake3::Hasher::new();
    for (inside, outside) in files {
        let meta = fs::metadata(outside).map_err(|e| file_error("read", outside, e))?;
        let line = format!("{inside:?} {outside:?} {} {}\n", meta.size(), meta.mtime());
        hash.update(line.as_bytes());
    }
    Ok(hash.finalize().to_hex()[..16].to_owned())
}

/// Fills a root that is being made.
fn stage(
    staging: &Path,
    files: &BTreeSet<(PathBuf, PathBuf)>,
    parts: &Parts,
) -> Result<(), EngineError> {
    let inside = |path: &Path| staging.join(path.strip_prefix("/").unwrap_or(path));
    let copy = |path: &Path, outside: &Path| {
        let target = inside(path);
        make_dir(target.parent().unwrap_or(staging))?;
        fs::copy(outside, &target).map_err(|e| file_error("copy", outside, e))?;
        set_mode(&target, root::READABLE)
    };
    for (path, outside) in files {
        copy(path, outside)?;
    }
    root::place(staging, KEEPER, parts.keeper, root::UNREADABLE)?;
    root::place(staging, FORK_LIBRARY, parts.fork_library, root::READABLE)?;
    // What our library needs, QEMU usually brings.
    let text = output(Command::new("ldd").arg(inside(Path::new(FORK_LIBRARY))))?;
    for (path, outside) in libraries(&text)? {
        if !inside(&path).exists() {
            copy(&path, &outside)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Stdio;

    use super::*;

    fn path(text: &str) -> PathBuf {
        text.into()
    }

    #[test]
    fn the_prefix_is_where_the_folder_of_programs_is() {
        assert_eq!(prefix(Path::new("/usr/bin/qemu-system-x86_64")), Path::new("/usr"));
        assert_eq!(prefix(Path::new("/a/b/usr/bin/qemu")), Path::new("/a/b/usr"));
    }

    #[test]
    fn libraries_go_by_their_name_to_where_the_loader_looks() {
        let text = "\tlinux-vdso.so.1 (0x00007f18fa23f000)\n\
                    \tlibfdt.so.1 => /a/usr/lib/x86_64-linux-gnu/libfdt.so.1 (0x00007f18fa1cc000)\n\
                    \tlibpulse.so => /lib/x86_64-linux-gnu/pulse/libpulse-1.so (0x0000000000000001)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f18f7c30000)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f18fa241000)\n";
        let [fdt, pulse, libc, loader] = &libraries(text).unwrap()[..] else { panic!() };
        let beside = |name| Path::new("/lib/x86_64-linux-gnu").join(name);
        assert_eq!(fdt.0, beside("libfdt.so.1"));
        assert_eq!(fdt.1, path("/a/usr/lib/x86_64-linux-gnu/libfdt.so.1"));
        assert_eq!(pulse.0, beside("libpulse.so"));
        assert_eq!(pulse.1, path("/lib/x86_64-linux-gnu/pulse/libpulse-1.so"));
        assert_eq!((&libc.0, &libc.1), (&beside("libc.so.6"), &beside("libc.so.6")));
        assert_eq!(loader.0, path("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(loader.0, loader.1);
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = libraries("\tlibfdt.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libfdt.so.1"), "{error}");
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
    }

    #[test]
    fn a_prefix_of_its_own_comes_before_the_system() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("usr");
        let place = |name: &str| {
            let file = prefix.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, name).unwrap();
            file
        };
        let bios = place("share/seabios/bios-microvm.bin");
        let module_file = place("lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so");
        assert_eq!(
            firmware(&prefix, "bios-microvm.bin"),
            Some((path("/usr/share/qemu/bios-microvm.bin"), bios))
        );
        assert_eq!(firmware(&prefix, "no-such.bin"), None);
        assert_eq!(
            module(&prefix, "accel-tcg-x86_64.so"),
            Some((path("/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"), module_file))
        );
        assert_eq!(module(&prefix, "no-such.so"), None);
    }

    #[test]
    fn the_loader_is_told_of_other_prefixes_only() {
        let told = |prefix: &str| {
            let mut command = Command::new("ldd");
            with_libraries(&mut command, Path::new(prefix));
            command.get_envs().next().map(|(_, value)| value.unwrap().to_owned())
        };
        assert_eq!(told("/usr"), None);
        let path = told("/a/usr").unwrap().into_string().unwrap();
        assert!(path.starts_with("/a/usr/lib/x86_64-linux-gnu:/a/usr/lib64:/a/usr/lib"), "{path}");
    }

    /// QEMU of the search path loads its firmware and translator from the copy alone. Run it below
    /// `cargo xtask qemu 10.0 --` for that QEMU.
    #[test]
    fn the_copy_needs_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        // Any dynamic object will do for the library; nothing loads it here.
        let own: &'static [u8] = fs::read("/proc/self/exe").unwrap().leak();
        let parts = Parts { keeper: b"", fork_library: own };
        let runtime = match Runtime::prepare(dir.path(), &parts) {
            Ok(runtime) => runtime,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let jailed = |args: &str| {
            let mut child = Command::new("unshare")
                .args(["--map-root-user", "--root"])
                .args([&runtime.root, &runtime.program])
                .args(args.split(' '))
                .env_clear()
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // One that ended already does not read.
            let _ = child.stdin.take().unwrap().write_all(b"info status\nquit\n");
            let output = child.wait_with_output().unwrap();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (text(&output.stdout), text(&output.stderr))
        };
        let (said, complaints) = jailed("--version");
        if complaints.starts_with("unshare: ") && complaints.contains("not permitted") {
            return eprintln!("skipped: {complaints}");
        }
        assert_eq!(said.lines().next(), Some(&*runtime.version), "{complaints}");
        let machine = "-nodefaults -display none -M microvm -accel tcg -S -monitor stdio";
        let (said, complaints) = jailed(machine);
        assert!(said.contains("VM status: paused"), "{said}{complaints}");
        for name in FIRMWARE {
            assert!(runtime.root.join("usr/share/qemu").join(name).is_file(), "{name}");
        }
    }
}
