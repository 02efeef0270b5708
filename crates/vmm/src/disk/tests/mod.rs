//! Tests of whole disks.

mod check;
mod damage;
pub(super) mod fault;
mod model;
mod power;
mod qemu;
mod rig;
mod stack;
