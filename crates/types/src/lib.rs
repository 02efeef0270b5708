//! The vocabulary of PandaStack: ids, sizes, states and the objects of the REST contract.
//!
//! Everything here is plain data. Names and numbers that come from outside are turned into
//! these types by their constructors, which are the only validators of the project: code that
//! holds a [`TemplateName`] or a [`SandboxId`] may join it to a path.
#![forbid(unsafe_code)]

mod egress;
mod event;
mod fork;
mod id;
mod lifecycle;
mod port;
mod sandbox;
mod size;
mod snapshot;
mod template;
mod volume;

pub use egress::{EgressEntry, EgressKind, EgressVerdict};
pub use event::Event;
pub use fork::{ForkFailure, ForkView};
pub use id::{InvalidName, SandboxId, SnapshotId, TemplateName, VolumeName};
pub use lifecycle::{EndReason, IllegalTransition, State, TtlMode};
pub use port::{PortSource, PortView, PreviewTokenView, TrafficTokenView};
pub use sandbox::{
    ExecOutput, ExecRequest, FileEntry, Isolation, JailLevel, Lifecycle, Metrics, SandboxSpec,
    SandboxView,
};
pub use size::{InvalidSize, Size, SizeLimits};
pub use snapshot::{SnapshotList, SnapshotView};
pub use template::{SizeState, SizeView, TemplateView};
pub use volume::{MAX_VOLUMES, VolumeMount, VolumeView};
