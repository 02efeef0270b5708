//! The network: closed until opened, from real guests against a fake internet that sees
//! everything. Asserted on both sides: what is closed fails in the guest, and nothing of it left
//! the host. What is open works, or the rest would prove nothing.
//!
//! One file for each class of incidents; a test each for what needs a server of its own.

mod cidrs;
mod closed;
mod crowd;
mod doh;
mod flows;
mod frames;
mod gateway;
mod guest;
mod hello;
mod hosts;
mod index;
mod isolation;
mod laboratory;
mod limits;
mod metadata;
mod names;
mod rebinding;
mod requests;
mod said;
mod stage;
mod starts;
mod tunnels;
