//! QEMU's tools see what this driver wrote, and the other way round. Without them these tests say
//! that they were skipped.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::model::{op, write};
use super::rig::{BYTES, CLUSTER, Rig, WINDOW, WINDOWS, cut, noise, open};
use crate::disk::{Disk, DiskError, LayerError};

/// Runs a tool of QEMU; true if it is there, and then it has succeeded.
fn run(program: &str, arguments: &[&str]) -> bool {
    match Command::new(program).args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed (Debian: qemu-utils)");
            false
        }
        Err(error) => panic!("{program}: {error}"),
        Ok(output) => {
            assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
            true
        }
    }
}

/// The image is without an error and without a leak.
pub fn check(path: &Path) {
    run("qemu-img", &["check", "-q", "-f", "qcow2", path.to_str().unwrap()]);
}

/// The disk as QEMU is told of it: what lies under what is said here, not in the files.
fn tree(rig: &Rig) -> String {
    let file = |path: &Path| format!(r#"{{"driver":"file","filename":"{}"}}"#, path.display());
    let base = format!(r#"{{"driver":"raw","file":{}}}"#, file(&rig.dir.path().join("base")));
    let on = |below, layer: &PathBuf| {
        format!(r#"{{"driver":"qcow2","file":{},"backing":{below}}}"#, file(layer))
    };
    format!("json:{}", rig.layers.iter().fold(base, on))
}

/// QEMU reads what the model says, and finds nothing wrong with any layer.
fn qemu_agrees(rig: &Rig) {
    let out = rig.dir.path().join("out");
    if !run("qemu-img", &["convert", "-O", "raw", &tree(rig), out.to_str().unwrap()]) {
        return;
    }
    let file = File::open(&out).unwrap();
    assert_eq!(file.metadata().unwrap().len(), BYTES);
    for (at, expected) in WINDOWS.into_iter().zip(&rig.model) {
        let mut found = vec![0; WINDOW as usize];
        file.read_exact_at(&mut found, at).unwrap();
        assert!(found == *expected, "window at {at}, read by QEMU");
    }
    rig.layers.iter().for_each(|layer| check(layer));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn qemu_reads_what_was_written(ops in proptest::collection::vec(op(), 1..40)) {
        let mut rig = Rig::new();
        ops.iter().for_each(|op| rig.perform(op));
        qemu_agrees(&rig);
    }

    #[test]
    fn what_qemu_wrote_is_read_and_written_on(
        before in proptest::collection::vec(op(), 0..8),
        theirs in proptest::collection::vec(write(), 1..8),
        after in proptest::collection::vec(op(), 0..8),
    ) {
        let mut rig = Rig::new();
        before.iter().for_each(|op| rig.perform(op));
        let mut commands = Vec::new();
        for (window, at, bytes, seed) in theirs {
            let (at, bytes) = (at / 512 * 512, vec![seed as u8; bytes as usize / 512 * 512]);
            let (at, bytes) = cut(at, &bytes);
            if bytes.is_empty() {
                continue;
            }
            let how = match seed as u8 {
                0 if at % 1024 == 0 => "-z -u".into(),
                0 => "-z".into(),
                byte => format!("-P {byte}"),
            };
            commands.push(format!("write {how} {} {}", WINDOWS[window] + at as u64, bytes.len()));
            rig.model[window][at..at + bytes.len()].copy_from_slice(bytes);
        }
        let tree = tree(&rig);
        let mut arguments = vec![tree.as_str()];
        commands.iter().for_each(|command| arguments.extend(["-c", command]));
        if run("qemu-io", &arguments) {
            rig.disk = rig.another();
            rig.verify_content();
            after.iter().for_each(|op| rig.perform(op));
            rig.verify();
            qemu_agrees(&rig);
        }
    }
}

/// Tries an image that `qemu-img create` made with these options as the top of a disk.
fn created(options: &str) -> Option<(Rig, Result<Disk, DiskError>)> {
    let mut rig = Rig::new();
    let (top, bytes) = (rig.dir.path().join("theirs"), BYTES.to_string());
    let data = rig.dir.path().join("data");
    let options = options.replace("DATA", data.to_str().unwrap());
    let arguments = ["create", "-q", "-f", "qcow2", "-o", &options, top.to_str().unwrap(), &bytes];
    if !run("qemu-img", &arguments) {
        return None;
    }
    let base = File::open(rig.dir.path().join("base")).unwrap();
    let disk = Disk::layered(base, vec![], open(&top));
    rig.layers = vec![top];
    Some((rig, disk))
}

#[test]
fn images_that_qemu_img_creates_are_layers() {
    for options in ["compat=1.1", "lazy_refcounts=on", "preallocation=metadata"] {
        let Some((mut rig, disk)) = created(options) else { return };
        rig.disk = disk.unwrap_or_else(|error| panic!("{options}: {error:?}"));
        if options.starts_with("prealloc") {
            // Every cluster is there, and zeros.
            rig.model.iter_mut().for_each(|window| window.fill(0));
        }
        for window in 0..WINDOWS.len() {
            rig.write(window, 70_000, &noise(1, 100_000));
        }
        rig.freeze();
        rig.write(0, 0, &noise(2, 200_000));
        rig.verify_content();
        qemu_agrees(&rig);
    }
}

#[test]
fn images_of_another_kind_are_refused() {
    let kinds = [
        "compat=0.10",
        "cluster_size=4096",
        "extended_l2=on",
        "refcount_bits=64",
        "compression_type=zstd",
        "data_file=DATA",
    ];
    for options in kinds {
        let Some((_, disk)) = created(options) else { return };
        let Err(DiskError::Layer { number: 1, source: LayerError::Format(_) }) = disk else {
            panic!("{options}");
        };
    }
}

#[test]
fn a_compressed_cluster_is_an_error_of_its_readers() {
    let mut rig = Rig::new();
    let (base, top) = (rig.dir.path().join("base"), rig.dir.path().join("compressed"));
    let paths = [base.to_str().unwrap(), top.to_str().unwrap()];
    if !run("qemu-img", &["convert", "-c", "-O", "qcow2", paths[0], paths[1]]) {
        return;
    }
    rig.layers = vec![top];
    let mut disk = rig.another();
    let mut buffer = [0; CLUSTER as usize];
    assert_eq!(disk.read_at(0, &mut buffer).unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(disk.write_at(0, &buffer).unwrap_err().kind(), ErrorKind::InvalidData);
}
