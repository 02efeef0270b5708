//! Where the content of a disk is: a bounded cache over the tables of all layers.
//!
//! A disk may have 65 layers, and asking each of them for every read would make old content slow.
//! So lookups are answered from [`Slice`]s, 32 MiB of the disk each, that say which layer a
//! cluster is in. Making one costs a read of 4 KiB per layer that has anything near.
//!
//! **A slice is never ahead of the layers**: a write changes the file first, or what it holds back. And layers are
//! numbered from below, so that a slice stays true when the top is frozen and gets an empty layer
//! on it. Both sides of a fork(2) can go on with their copy of it.

use std::io;

use super::header::CLUSTER;
use super::layer::{Content, Layer, entries};

/// Clusters of the disk in a slice: a part of a second-level table, in one page of its file.
const SLICE: usize = 512;

/// Slices that are remembered, of 4 KiB each. Enough for a disk of 16 GiB.
const SLOTS: usize = 512;

/// Where the content of a cluster of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the raw file under all layers.
    Base,
    /// Nowhere: it is zeros. `cluster` of the layer's file is set aside for it, unless 0.
    Zeros { layer: u8, cluster: u32 },
    /// In a cluster of the file of a layer. The lowest layer is number 1.
    Layer { layer: u8, cluster: u32 },
}

impl Place {
    /// Whether a layer has a cluster of its file for this, with content in it or set aside.
    pub fn has_room_in(self, which: u8) -> bool {
        match self {
            Self::Base => false,
            Self::Zeros { layer, cluster } | Self::Layer { layer, cluster } => {
                layer == which && cluster != 0
            }
        }
    }

    /// Whether the content here continues what is at `before`, in the same file.
    fn continues(self, before: Self) -> bool {
        match (before, self) {
            (Self::Base, Self::Base) | (Self::Zeros { .. }, Self::Zeros { .. }) => true,
            (Self::Layer { layer: below, cluster: previous }, Self::Layer { layer, cluster }) => {
                layer == below && cluster == previous + 1
            }
            _ => false,
        }
    }
}

/// How many of the `bytes` from a place on, `within` its cluster, are in one piece of one file. The
/// places that follow it are given too.
pub(super) fn piece(places: &[Place], within: u64, bytes: usize) -> usize {
    let touched = (within + bytes as u64).div_ceil(CLUSTER) as usize;
    let places = &places[..touched.min(places.len())];
    let run = 1 + places.windows(2).take_while(|pair| pair[1].continues(pair[0])).count() as u64;
    bytes.min((run * CLUSTER - within) as usize)
}

struct Slice {
    /// Which part of the disk.
    number: u64,
    places: [Place; SLICE],
}

/// The slices that are remembered: each part of the disk has one slot that it can be in.
pub(super) struct Map {
    slots: Vec<Option<Box<Slice>>>,
}

impl Map {
    pub fn new() -> Self {
        Self { slots: std::iter::repeat_with(|| None).take(SLOTS).collect() }
    }

    /// The places of a cluster of the disk and of those that follow it in its slice. `layers` are
    /// all of them, from below.
    pub fn places<'a, 'l>(
        &'a mut self,
        guest: u64,
        layers: impl Iterator<Item = &'l Layer>,
    ) -> io::Result<&'a [Place]> {
        let (number, within) = split(guest);
        let slot = &mut self.slots[number as usize % SLOTS];
        let slice = match slot.take() {
            Some(slice) if slice.number == number => slice,
            other => Slice::load(number, layers, other)?,
        };
        Ok(&slot.insert(slice).places[within..])
    }

    /// Changes the place of a cluster of the disk after its layer's file has changed.
    pub fn set(&mut self, guest: u64, place: Place) {
        let (number, within) = split(guest);
        if let Some(slice) = &mut self.slots[number as usize % SLOTS]
            && slice.number == number
        {
            slice.places[within] = place;
        }
    }
}

/// The slice of a cluster and its index therein.
fn split(guest: u64) -> (u64, usize) {
    (guest / SLICE as u64, guest as usize % SLICE)
}

impl Slice {
    /// Asks all layers, the highest last. Reuses the memory of a slice that is forgotten.
    fn load<'l>(
        number: u64,
        layers: impl Iterator<Item = &'l Layer>,
        memory: Option<Box<Self>>,
    ) -> io::Result<Box<Self>> {
        let mut slice =
            memory.unwrap_or_else(|| Box::new(Self { number, places: [Place::Base; SLICE] }));
        slice.number = number;
        slice.places.fill(Place::Base);
        let mut table = [0; 8 * SLICE];
        for (layer, index) in layers.zip(1..) {
            if !layer.read_entries(number * SLICE as u64, &mut table)? {
                continue;
            }
            for (place, entry) in slice.places.iter_mut().zip(entries(&table)) {
                match layer.content(entry)? {
                    Content::Below => {}
                    Content::Zeros(cluster) => *place = Place::Zeros { layer: index, cluster },
                    Content::Cluster(cluster) => *place = Place::Layer { layer: index, cluster },
                }
            }
        }
        Ok(slice)
    }
}
