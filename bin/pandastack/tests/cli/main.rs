//! The program from outside: its streams, files and exit status against a server that plays
//! along. What needs real sandboxes is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod copy;
mod fake;
mod local;
mod ports;
mod program;
mod run;
mod sandbox;
