//! The domain: what a sandbox is and what may be done to it.
//!
//! ```text
//!              Manager ── create ──▶ admission ─▶ bake ─▶ journal ─▶ owner task ─▶ view
//!                 │                                          ▲            │
//!                 │ registry                pool, fork ─────┘            │ owns
//!                 ▼                                                       ▼
//!              Sandbox (shared handle) ── mailbox: pause, resume, …▶  Machine
//!                 └── exec and files run beside it, on a clone of the agent's handle
//! ```
//!
//! Four invariants, each with one place that keeps it:
//!
//! * **Every state change is journalled before it acts** ([`State::step`] decides, `owner`
//!   writes and then acts), so after a crash the records name everything that may exist. Of a
//!   sandbox that is files, these decide (see `hibernate`).
//! * **One task per sandbox changes its state.** Clients only send it messages, so pause,
//!   resume, expiry, death of the machine and deletion never overlap.
//! * **No machine runs for a tenant without its network policy in force** (see `network`).
//! * **A machine serves one tenant.** It comes out of the pool once and is killed afterwards;
//!   what is forked again and again never served anybody.
//!
//! [`State::step`]: pandastack_types::State::step
#![forbid(unsafe_code)]

mod admission;
mod boot;
mod classes;
mod config;
mod create;
mod custody;
mod egress;
mod error;
mod exec;
pub mod fault;
mod files;
mod fork;
mod forking;
mod hibernate;
mod history;
mod host;
mod ingress;
mod keeper;
mod launch;
mod limits;
mod logs;
mod machines;
mod manager;
mod metadata;
mod network;
mod owner;
mod pool;
mod promote;
mod recovery;
mod repair;
mod request;
mod ring;
mod runclock;
mod sandbox;
mod snapshot;
mod stages;
mod sync;
mod templates;
mod volumes;

pub use config::Config;
pub use custody::Outliving;
pub use egress::{EgressLine, EgressLog};
pub use error::{
    Chain, CreateError, DeleteSnapshotError, ExecError, FileError, ForkError, InvalidRequest,
    LifecycleError, NoSnapshot, NoWake, NotFound, PromoteError, SnapshotError, StartError,
    Unavailable, VolumeError,
};
pub use exec::{Collected, Execution, Output, Stdin};
pub use files::{Download, Upload};
pub use fork::Forked;
pub use forking::Forking;
pub use history::{BakeStory, History, MAX_STORY};
pub use ingress::{
    Connection, DialError, Exposed, Ingress, MAX_CONNECTIONS, Port, PortError, Ports,
};
pub use launch::Created;
pub use limits::LifecycleChange;
pub use logs::{LogLine, LogStream, Logs};
pub use manager::Manager;
pub use network::{Attached, GatewayError, Log, Network};
pub use pool::Parking;
pub use promote::Promoted;
pub use repair::{Repairs, repair};
pub use request::{Command, ForkRequest, NewSandbox};
pub use ring::Cursor;
pub use sandbox::Sandbox;
pub use stages::Stages;
pub use templates::{BakeError, Template, Templates};
