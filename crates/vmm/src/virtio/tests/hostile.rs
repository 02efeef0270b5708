//! Drivers made of random bytes, against every device.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::driver::Echo;
use crate::virtio::block::{Block, Storage};
use crate::virtio::hostile::drive;
use crate::virtio::{Net, Rng};

/// A small disk whose every third access fails.
struct Moody(Vec<u8>, u32);

impl Moody {
    fn access(&mut self) -> std::io::Result<()> {
        self.1 += 1;
        if self.1.is_multiple_of(3) { Err(std::io::Error::other("moody")) } else { Ok(()) }
    }
}

impl Storage for Moody {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.access()?;
        buffer.copy_from_slice(&self.0[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.access()?;
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.access()
    }
}

/// Bytes that are a few hundred steps: 0 to 7 as the first of a step is as good as any, so that
/// half of them are small.
fn script() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0), 1..16u8, any::<u8>()];
    let random = prop::collection::vec(byte, 0..64);
    // Set up properly and notified, with bytes in between.
    let part = (random, any::<[u8; 4]>())
        .prop_map(|(bytes, features)| [&[5][..], &features, &bytes].concat());
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_device_survives_it(bytes in script()) {
        drive(Echo::default(), &bytes);
        drive(Rng, &bytes);
        drive(Block::new(Moody(vec![7; 64 << 10], 0), "moody", false), &bytes);
        let (ours, peer) = UnixDatagram::pair().unwrap();
        for len in [60, 1514, 3000, 14] {
            peer.send(&vec![1; len]).unwrap();
        }
        drive(Net::new(Some(OwnedFd::from(ours)), [2, 0, 0, 0, 0, 1]), &bytes);
    }
}

#[test]
fn bytes_get_as_far_as_a_proper_driver() {
    let up = [5, 0xff, 0xff, 0xff, 0xff];
    // A header that reads sector 0, with room for the answer.
    let read = [6, 0, 0, 3, 0, 0xe0, 16, 0, 0, 0, 0xf0, 0, 2, 2, 0, 0xf8, 1, 0, 2, 4];
    let state =
        drive(Block::new(Moody(vec![7; 1024], 0), "moody", false), &[&up[..], &read].concat());
    assert_eq!(state.registers.status().bits(), 0xf);
    assert_eq!((state.positions[0].next_available, state.positions[0].next_used), (1, 1));
    assert_eq!(state.interrupt_status, 1);
}
