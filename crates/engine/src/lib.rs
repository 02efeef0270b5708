//! Machines: what runs a guest.
//!
//! An [`Engine`] boots a [`GuestImage`] once and freezes it into a [`Bake`]; from then on every
//! machine is a copy of that bake, restored or forked and never booted. A [`Machine`] that comes
//! out of [`Engine::restore`] or [`Machine::fork`] stands still and has nobody's identity; it
//! becomes a sandbox when it runs and its agent has acknowledged an
//! [`Identity`](agent::Identity).
//!
//! ```text
//!  GuestImage ──bake()──▶ Bake ──restore()──▶ Machine (parked) ──run()──▶ running ⇄ paused
//!                          ▲                     ▲                          │   │  kill() ─▶ gone
//!                          │                     └───────── fork() ─────────┤   │
//!                          └─────────────────────────── snapshot() ─────────┘───┘
//! ```
//!
//! [`kvm`] implements both on hardware virtualisation, and [`qemu`] for hosts without it. What
//! neither owns lies beside them: a machine's disk, its process and that process's end, the files
//! of bakes, the proof of forks.
#![forbid(unsafe_code)]

pub mod agent;
mod disk;
mod error;
mod files;
mod generations;
pub mod kvm;
mod machine;
mod process;
mod proof;
pub mod qemu;
mod rehearsal;
mod sparse;
mod to_its_end;
mod tsc;
mod wire;

pub use disk::volume::{VolumeSource, make as make_volume, settle as settle_volume};
pub use error::EngineError;
pub use machine::{
    After, Bake, BakeLog, Engine, Exit, Forked, GuestImage, Kept, Machine, Stages, Usage,
};
