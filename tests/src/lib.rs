//! The harness of the tests and benchmarks that use the real server with real guests.
//!
//! A [`Server`] is a process of its own with a data directory of its own; templates are shared
//! between all of them, because building them takes minutes. `cargo xtask test` builds the
//! program and the templates first and says where they are.

mod client;
mod footprint;
pub mod holder;
pub mod lab;
mod leavings;
mod numbers;
mod process;
mod random;
mod sandbox;
mod server;
mod stress;
mod surroundings;

pub use client::{Answer, Client};
pub use footprint::{Footprint, groups_of};
pub use leavings::{ended_for, every_story_ends, names_in};
pub use numbers::{Numbers, every};
pub use process::{
    descendants, is_alive, kill, machines_below, name_of, open_descriptors, own_memory, wait_until,
};
pub use random::Random;
pub use sandbox::{Sandbox, Tree};
pub use server::{Options, Server, holder_of};
pub use stress::Stress;
pub use surroundings::{
    deadline, engine, faulty_program, number, program, seconds, shared_data, skip, slowness,
};
