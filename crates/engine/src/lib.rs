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
//! [`qemu`] implements both for hosts without hardware virtualisation.
#![forbid(unsafe_code)]

pub mod agent;
mod machine;
pub mod qemu;

pub use machine::{Bake, BakeLog, Engine, EngineError, Exit, Forked, GuestImage, Machine, Usage};
