//! Disks in layers, over a base of zeros.
//!
//! ```text
//!   layers as they were written    every read is what was written last      (first byte even)
//!   layers with bytes changed      an error, never a panic or a loop        (first byte odd)
//! ```
#![no_main]

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::{Script, file, sparse};
use pandastack_vmm::disk::{Disk, EMPTY_BYTES, write_empty};

const CLUSTER: u64 = 64 << 10;
/// Sizes of disks: a part of a cluster, a few clusters, and several second-level tables.
const SIZES: [u64; 3] = [512, 5 * CLUSTER + 512, (3 << 30) + 1024];
/// Longest access.
const MAX_ACCESS: u64 = 2 * CLUSTER + 1024;

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let [kind, size, layers] = script.take()?;
    let (intact, bytes) = (kind & 1 == 0, SIZES[usize::from(size) % SIZES.len()]);
    let files: Vec<File> = (0..=layers % 4).map(|_| empty(bytes)).collect();
    if !intact {
        damage(&files, &mut script)?;
    }
    let same = |file: &File| file.try_clone().expect("a descriptor");
    let (top, frozen) = files.split_last()?;
    let layers = frozen.iter().map(same).collect();
    let mut disk = match Disk::layered(sparse(bytes), layers, same(top)) {
        Ok(disk) => disk,
        Err(_) if !intact => return None,
        Err(error) => panic!("{error:?}"),
    };
    let (mut top, mut written) = (same(top), Vec::new());
    let mut steps = 0;
    while let Some(what) = script.u8() {
        steps += 1;
        if steps > 32 {
            break;
        }
        match what % 8 {
            0..4 => {
                let (at, len) = place(&mut script, bytes)?;
                let fill = script.u8()?;
                match disk.write_at(at, &vec![fill; len]) {
                    Ok(()) => written.push((at, len, fill)),
                    Err(error) => assert_excused(&error, intact),
                }
            }
            4..7 => {
                let (at, len) = place(&mut script, bytes)?;
                let mut found = vec![0xee; len];
                match disk.read_at(at, &mut found) {
                    Ok(()) if intact => assert!(found == expected(&written, at, len), "{at} {len}"),
                    Ok(()) => {}
                    Err(error) => assert_excused(&error, intact),
                }
            }
            _ => {
                let new = empty(bytes);
                match disk.freeze(same(&top), same(&new)) {
                    Ok(()) => top = new,
                    Err(error) if intact => panic!("{error:?}"),
                    Err(_) => {}
                }
            }
        }
    }
    if intact {
        assert_claimed(&top);
    }
    Some(())
}

fn empty(bytes: u64) -> File {
    let image = file(&[]);
    write_empty(&image, bytes).expect("an image");
    image
}

/// Changes some bytes of some files: mostly where a table or a header is.
fn damage(files: &[File], script: &mut Script<'_>) -> Option<()> {
    for _ in 0..script.u8()? % 16 {
        let [number, cluster, kind] = script.take()?;
        let file = &files[usize::from(number) % files.len()];
        let at = u64::from(cluster % 8) * CLUSTER + u64::from(script.u16()?);
        match kind % 4 {
            0 => file.set_len(at).expect("a length"),
            1 => file.write_all_at(script.some(16)?, at).expect("room"),
            // An entry of a table that names a cluster.
            _ => {
                let copied = u64::from(kind & 4 != 0) << 63;
                let entry = copied | (u64::from(script.u8()? % 16) * CLUSTER);
                let at = u64::from(cluster % 8) * CLUSTER + at % 16 * 8;
                file.write_all_at(&(entry | u64::from(kind >> 7)).to_be_bytes(), at).expect("room");
            }
        }
    }
    Some(())
}

/// A place on the disk, with its end within reach, and a length that is rarely too long.
fn place(script: &mut Script<'_>, bytes: u64) -> Option<(u64, usize)> {
    let (kind, at, len) = (script.u8()?, script.u32()?, script.u32()?);
    let at = match kind % 4 {
        0 => u64::from(at) % (bytes + 1),
        1 => u64::from(at) % (bytes + 1) / CLUSTER * CLUSTER,
        2 => bytes.saturating_sub(u64::from(at) % MAX_ACCESS),
        _ => u64::from(at) % MAX_ACCESS % (bytes + 1),
    };
    let most = MAX_ACCESS.min(bytes.saturating_sub(at) + u64::from(kind >> 7));
    let len = if kind & 4 == 0 { most } else { u64::from(len) % (most + 1) };
    Some((at, len as usize))
}

fn expected(written: &[(u64, usize, u8)], at: u64, len: usize) -> Vec<u8> {
    let mut expected = vec![0; len];
    for (start, bytes, fill) in written {
        let from = start.saturating_sub(at).min(len as u64) as usize;
        let to = (start + *bytes as u64).saturating_sub(at).min(len as u64) as usize;
        expected[from..to].fill(*fill);
    }
    expected
}

/// Beyond the end is always an error, and a damaged layer may be one.
fn assert_excused(error: &std::io::Error, intact: bool) {
    let excused = match error.kind() {
        ErrorKind::InvalidInput => true,
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => !intact,
        _ => false,
    };
    assert!(excused, "{error:?}");
}

/// Every cluster of an image is counted once: nothing but what was named was taken.
fn assert_claimed(top: &File) {
    let length = top.metadata().expect("a file").len();
    assert!(length >= EMPTY_BYTES && length.is_multiple_of(CLUSTER));
    let mut counts = vec![0; 2 * (length / CLUSTER) as usize];
    top.read_exact_at(&mut counts, 2 * CLUSTER).expect("a block of counts");
    assert!(counts.chunks(2).all(|count| count == [0, 1]), "{counts:?}");
}
