//! Entropy: virtio-rng (virtio 1.2, section 5.4), straight from the host's generator.
//!
//! Nothing is kept between requests, so two copies of a machine never get the same bytes.

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::device::{Broken, Device, DeviceState};
use super::queue::{Chain, Queue};
use crate::GuestMemory;

/// Drivers have one request under way.
const QUEUE_SIZE: u16 = 8;
/// Most bytes of one answer; a driver asks again if it wants more.
const MAX_BYTES: usize = 4096;

/// The source of entropy.
#[derive(Debug, Default)]
pub struct Rng;

impl Rng {
    /// Fills a chain, and says how far.
    fn fill(chain: &Chain, memory: &GuestMemory) -> Result<u32, Broken> {
        let mut random = [0; MAX_BYTES];
        let wanted = chain.writable_bytes().min(MAX_BYTES as u64) as usize;
        if wanted == 0 {
            return Err(Broken("a request for no entropy"));
        }
        let mut have = 0;
        while have < wanted {
            have += getrandom(&mut random[have..wanted], GetRandomFlags::empty())
                .map_err(|_| Broken("a host without entropy"))?;
        }
        Ok(chain.write(memory, 0, &random[..wanted])? as u32)
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken> {
        let [queue] = queues else { return Err(Broken("entropy has one queue")) };
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let written = Self::fill(&chain, memory)?;
            queue.push(memory, chain.head, written)?;
        }
        queue.has_available(memory)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), Broken> {
        state.expect_nothing()
    }
}
