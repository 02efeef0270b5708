//! What every engine must do, through the real server with real guests.
//!
//! The suite does not know which engine it runs on: `PANDASTACK_TEST_ENGINE` says what the server
//! is started with, and all that a test may ask is answered by the API or by the guest. Where an
//! engine or a host cannot do something, the test says so with [`pandastack_tests::skip`].

mod clock;
mod ends;
mod forks;
mod hibernation;
mod identity;
mod instant;
mod life;
mod limits;
mod network;
mod snapshots;
