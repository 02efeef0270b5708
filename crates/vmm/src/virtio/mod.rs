//! virtio devices over the mmio transport (virtio 1.2, section 4.2).
//!
//! The guest may write anything at any moment. So a device never trusts a ring: it is checked once
//! when the driver has set it up and frozen from then on ([`queue`]), every chain is checked when
//! it is taken, and a driver that breaks the rules ends with a device that needs a reset, never
//! with a monitor that is in trouble.
//!
//! ```text
//!  vCPU threads                                            thread of devices
//!                               Slot
//!  load, store ──▶ Window ──▶ ┌─────────────────┐ ◀── Served ◀── Bell::serve
//!                             │ registers  lock │                   ▲
//!                             │ device, queues  │                   │
//!  QueueNotify ─────────────▶ └─────────────────┘ ──────────── Bell::ring
//! ```
//!
//! [`hostile`] is a driver made of bytes, for fuzzing and for tests.

pub mod block;
pub mod device;
pub mod hostile;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod serve;
pub mod slot;
pub mod status;
pub mod vsock;

pub use block::{Block, Storage};
pub use device::{Broken, Device, DeviceState, Interest};
pub use net::Net;
pub use queue::{Chain, Queue, QueueSetup, Span};
pub use rng::Rng;
pub use serve::{Bell, Served};
pub use slot::{Bus, Interrupts, RestoreError, Slot, SlotState, Window, slot_at};

#[cfg(test)]
mod tests;
