//! Reading and writing through a stack of layers.
//!
//! A request is cut into pieces that are in one file and adjacent there. The highest layer that
//! knows a cluster has the truth of it, and the first write to a cluster makes the top that layer:
//! a write of a whole cluster just stores it, any other first fetches the rest from below.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::CLUSTER;
use super::layer::{COPIED, Layer, LayerError, ZERO};
use super::map::{self, Map, Place};
use super::top::{Top, offset};
use super::{DiskError, MAX_LAYERS, regular};

/// A raw file, frozen layers on it, lowest first, and a top.
pub(super) struct Stack {
    base: File,
    bytes: u64,
    frozen: Vec<Layer>,
    /// How many of the frozen layers were written since the last flush of a lasting disk.
    unsynced: usize,
    top: Top,
    map: Map,
}

impl Stack {
    /// Opens the layers of a disk of `bytes`, of which there are at most [`MAX_LAYERS`].
    pub fn open(base: File, bytes: u64, layers: Vec<File>, top: File) -> Result<Self, DiskError> {
        let at = |number| move |source| DiskError::Layer { number, source };
        let numbered = layers.into_iter().zip(1..);
        let frozen = numbered
            .map(|(file, number)| Layer::open(file, bytes).map_err(at(number)))
            .collect::<Result<Vec<_>, _>>()?;
        let top = Top::open(top, bytes).map_err(at(frozen.len() + 1))?;
        Ok(Self { base, bytes, frozen, unsynced: 0, top, map: Map::new() })
    }

    /// See [`super::Disk::freeze`].
    pub fn freeze(&mut self, frozen: File, top: File) -> Result<(), DiskError> {
        self.commit()?;
        if self.frozen.len() >= MAX_LAYERS {
            return Err(DiskError::TooManyLayers);
        }
        let refused = |source| DiskError::Layer { number: self.frozen.len() + 1, source };
        let identity = |file| regular(file).map_err(LayerError::Read).map_err(refused);
        let (below, above) = (identity(&frozen)?.identity, identity(&top)?.identity);
        if below != identity(&self.top.layer.file)?.identity || above == below {
            return Err(DiskError::OtherFile);
        }
        let top = self.open_empty(top, self.frozen.len() + 2)?;
        let below = std::mem::replace(&mut self.top, top).layer;
        self.frozen.push(Layer { file: frozen, ..below });
        self.unsynced += 1;
        Ok(())
    }

    /// See [`super::Disk::set_lasting`].
    pub fn set_lasting(&mut self, lasting: bool) -> Result<(), DiskError> {
        self.commit()?;
        self.top.lasting = lasting;
        Ok(())
    }

    /// See [`super::Disk::commit`].
    pub fn commit(&mut self) -> Result<(), DiskError> {
        self.top.commit().map_err(DiskError::Write)
    }

    /// See [`super::Disk::flush`].
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.top.lasting {
            return Ok(());
        }
        let written = self.frozen.len() - self.unsynced;
        self.frozen[written..].iter().try_for_each(|layer| layer.file.sync_data())?;
        self.unsynced = 0;
        self.top.commit()?;
        self.top.sync()
    }

    /// See [`super::Disk::replace_top`].
    pub fn replace_top(&mut self, top: File) -> Result<(), DiskError> {
        if !self.top.layer.is_empty() {
            return Err(DiskError::Written);
        }
        self.top = self.open_empty(top, self.frozen.len() + 1)?;
        Ok(())
    }

    fn open_empty(&self, top: File, number: usize) -> Result<Top, DiskError> {
        let mut top = Top::open_empty(top, self.bytes)
            .map_err(|source| DiskError::Layer { number, source })?;
        top.lasting = self.top.lasting;
        Ok(top)
    }

    /// Fills a buffer from `at`. What is beyond the end of the disk is zeros, so that a whole
    /// cluster can be read there.
    pub fn read(&mut self, mut at: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let (guest, within) = (at / CLUSTER, at % CLUSTER);
            let places = self.places(guest)?;
            let (place, piece) = (places[0], map::piece(places, within, buffer.len()));
            let (now, rest) = buffer.split_at_mut(piece);
            match place {
                Place::Base => self.read_base(at, now)?,
                Place::Zeros { .. } => now.fill(0),
                Place::Layer { layer, cluster } => {
                    let file = self.file(layer);
                    file.read_exact_at(now, offset(cluster) + within)?;
                }
            }
            (at, buffer) = (at + piece as u64, rest);
        }
        Ok(())
    }

    /// Writes at `at`. After an error any part of it may have been written.
    pub fn write(&mut self, mut at: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let piece = self.write_piece(at, bytes)?;
            (at, bytes) = (at + piece as u64, &bytes[piece..]);
        }
        Ok(())
    }

    /// Writes the beginning of `bytes` and says how many that were.
    fn write_piece(&mut self, at: u64, bytes: &[u8]) -> io::Result<usize> {
        let (guest, within) = (at / CLUSTER, at % CLUSTER);
        let top = self.top_number();
        let places = self.places(guest)?;
        if let Place::Layer { layer, cluster } = places[0]
            && layer == top
        {
            let piece = map::piece(places, within, bytes.len());
            self.top.write(&bytes[..piece], offset(cluster) + within)?;
            return Ok(piece);
        }
        if within != 0 || bytes.len() < CLUSTER as usize {
            let piece = map::piece(&places[..1], within, bytes.len());
            let mut whole = vec![0; CLUSTER as usize];
            self.read(guest * CLUSTER, &mut whole)?;
            whole[within as usize..][..piece].copy_from_slice(&bytes[..piece]);
            self.store(guest, &whole)?;
            return Ok(piece);
        }
        let clusters = bytes.as_chunks::<{ CLUSTER as usize }>().0;
        if is_zero(&clusters[0]) {
            self.store_zeros(guest)?;
            return Ok(CLUSTER as usize);
        }
        let absent = places.iter().take_while(|place| !place.has_room_in(top));
        let run = absent.zip(clusters).take_while(|(_, cluster)| !is_zero(cluster)).count();
        // None are absent if room is set aside for the first: that one alone, then.
        self.store(guest, clusters[..run.max(1)].as_flattened())
    }

    /// Makes the top have whole clusters of the disk from `guest` on, and says how many bytes of
    /// them that were. It had room set aside for the first, or has none for any.
    fn store(&mut self, guest: u64, content: &[u8]) -> io::Result<usize> {
        let top = self.top_number();
        let wanted = content.len() / CLUSTER as usize;
        let (room, fresh) = match self.places(guest)?[0] {
            Place::Zeros { layer, cluster } if layer == top && cluster != 0 => {
                (cluster..cluster + 1, false)
            }
            _ => (self.top.room(wanted as u32)?, true),
        };
        let stored = room.len() * CLUSTER as usize;
        self.top.write(&content[..stored], offset(room.start))?;
        if fresh {
            self.top.claim(&room)?;
        }
        let entries: Vec<u64> = room.clone().map(|cluster| COPIED | offset(cluster)).collect();
        self.top.point(guest, &entries)?;
        for (guest, cluster) in (guest..).zip(room) {
            self.map.set(guest, Place::Layer { layer: top, cluster });
        }
        Ok(stored)
    }

    /// Makes a cluster of the disk that the top does not have be zeros, without room for it.
    fn store_zeros(&mut self, guest: u64) -> io::Result<()> {
        if !matches!(self.places(guest)?[0], Place::Zeros { .. }) {
            self.top.point(guest, &[ZERO])?;
            self.map.set(guest, Place::Zeros { layer: self.top_number(), cluster: 0 });
        }
        Ok(())
    }

    fn places(&mut self, guest: u64) -> io::Result<&[Place]> {
        let layers = self.frozen.iter().chain(std::iter::once(&self.top.layer));
        self.map.places(guest, layers)
    }

    /// The number that the top has in a [`Place`]: at most `MAX_LAYERS` are below it.
    fn top_number(&self) -> u8 {
        self.frozen.len() as u8 + 1
    }

    /// The file of the layer with a number out of a [`Place`].
    fn file(&self, layer: u8) -> &File {
        &self.frozen.get(usize::from(layer) - 1).unwrap_or(&self.top.layer).file
    }

    fn read_base(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let inside = self.bytes.saturating_sub(at).min(buffer.len() as u64);
        let (inside, beyond) = buffer.split_at_mut(inside as usize);
        beyond.fill(0);
        self.base.read_exact_at(inside, at)
    }
}

/// Whether there is nothing in a cluster.
pub(super) fn is_zero(cluster: &[u8; CLUSTER as usize]) -> bool {
    cluster.as_chunks::<64>().0.iter().all(|part| *part == [0; 64])
}
