//! Several frozen layers made one, so that a disk that is kept again and again stays shallow.
//!
//! What a machine reads does not change: the merged layer has, of every cluster, what the highest
//! of the others had, and nothing where all of them show what is below.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::DiskError;
use super::header::{CLUSTER, ENTRIES, l1_entries};
use super::layer::{COPIED, Layer, ZERO};
use super::map::{Map, Place};
use super::stack::is_zero;
use super::top::{Top, offset};

/// Why layers could not be made one. They are as they were.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of them, or the new one, cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// One of them is damaged, or the new one cannot be written.
    #[error("the layers cannot be made one")]
    Io(#[from] io::Error),
}

/// Writes what `layers` have together, lowest first, into the empty image `into`, which is open for
/// reading and writing. All are of a disk of `bytes`.
pub fn merge(layers: Vec<File>, into: File, bytes: u64) -> Result<(), MergeError> {
    if layers.len() > super::MAX_LAYERS {
        return Err(DiskError::TooManyLayers.into());
    }
    let at = |number| move |source| DiskError::Layer { number, source };
    let layers = layers.into_iter().zip(1..);
    let layers = layers
        .map(|(file, number)| Layer::open(file, bytes).map_err(at(number)))
        .collect::<Result<Vec<_>, _>>()?;
    let mut into = Top::open_empty(into, bytes).map_err(at(layers.len() + 1))?;
    let mut map = Map::new();
    for table in 0..l1_entries(bytes) {
        if layers.iter().all(|layer| layer.l1[table as usize] == 0) {
            continue;
        }
        let end = ((table + 1) * ENTRIES).min(bytes.div_ceil(CLUSTER));
        for guest in table * ENTRIES..end {
            copy(guest, map.places(guest, layers.iter())?[0], &layers, &mut into)?;
        }
    }
    Ok(())
}

/// Takes one cluster of the disk over.
fn copy(guest: u64, place: Place, layers: &[Layer], into: &mut Top) -> io::Result<()> {
    let (layer, cluster) = match place {
        Place::Base => return Ok(()),
        Place::Zeros { .. } => return into.point(guest, &[ZERO]),
        Place::Layer { layer, cluster } => (&layers[usize::from(layer) - 1], cluster),
    };
    let mut content = [0; CLUSTER as usize];
    read(&layer.file, offset(cluster), &mut content)?;
    if is_zero(&content) {
        return into.point(guest, &[ZERO]);
    }
    let room = into.room(1)?;
    into.write(&content, offset(room.start))?;
    into.claim(&room)?;
    into.point(guest, &[COPIED | offset(room.start)])
}

/// Fills the buffer; what is beyond the end of the file, whose last cluster may be cut, stays zero.
fn read(file: &File, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => return Ok(()),
            Ok(read) => (at, buffer) = (at + read as u64, &mut buffer[read..]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
