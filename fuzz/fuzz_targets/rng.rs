//! Drivers made of bytes, against the source of entropy.
#![no_main]

use pandastack_vmm::virtio::Rng;
use pandastack_vmm::virtio::hostile::drive;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drive(Rng, bytes);
});
