//! What can go wrong, one enum per operation.
//!
//! Texts go to clients. They name neither host paths nor anything of another sandbox but the
//! id of one that has a volume, and none
//! contains a phrase that client libraries take as an invitation to send a command again
//! (`connection refused`, `no route to host`, `i/o timeout`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pandastack_engine::EngineError;
use pandastack_engine::agent::AgentError;
use pandastack_gateway::client::GatewayError;
use pandastack_store::StoreError;
use pandastack_types::{
    EndReason, InvalidSize, SandboxId, Size, SnapshotId, TemplateName, VolumeName,
};

use crate::templates::BakeError;

/// The server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another server has the instance directory.
    #[error("another server is running in {0}; stop it or choose another directory")]
    InUse(PathBuf),
    /// The instance directory cannot be prepared.
    #[error("cannot prepare {path}")]
    Directory {
        /// What was being prepared.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The records could not be brought up to date.
    #[error("cannot recover the records")]
    Records(#[from] StoreError),
}

/// There is no such sandbox, or there is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sandbox {0} not found")]
pub struct NotFound(pub SandboxId);

/// There is no such snapshot, or there is none any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("snapshot {0} not found")]
pub struct NoSnapshot(pub SnapshotId);

/// A request that is wrong whatever the state of the server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// A size outside the limits.
    #[error(transparent)]
    Size(#[from] InvalidSize),
    /// Time to live out of range.
    #[error("ttl_seconds must be 0 (no limit) to {max}, not {0}", max = crate::request::MAX_TTL_SECONDS)]
    Ttl(i64),
    /// Time limit of a command out of range.
    #[error("timeout_seconds must be 1 to {max}, not {0}", max = crate::request::MAX_EXEC_SECONDS)]
    Timeout(i64),
    /// Something is missing, too long or has a character that it must not have.
    #[error("{0}")]
    Field(String),
}

/// Why a sandbox was not created. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// No template has this name.
    #[error("unknown template \"{0}\"")]
    UnknownTemplate(TemplateName),
    /// It does not get one of its volumes.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Its guest could not mount a volume.
    #[error("the sandbox could not mount volume {0}")]
    NotMounted(VolumeName, #[source] AgentError),
    /// There is no such snapshot.
    #[error(transparent)]
    NoSnapshot(#[from] NoSnapshot),
    /// The snapshot is there, but not what a sandbox made of it may reach.
    #[error("the egress policy of snapshot {0} is damaged; say in the request what is meant")]
    DamagedPolicy(SnapshotId),
    /// The snapshot is there, but nothing can be made of it here.
    #[error("snapshot {id} cannot be used: {why}")]
    StaleSnapshot {
        /// The snapshot.
        id: SnapshotId,
        /// What is missing or different.
        why: &'static str,
    },
    /// The template is known but not ready.
    #[error("template is being built: \"{0}\" is not ready yet, try again soon")]
    Building(TemplateName),
    /// As many sandboxes as this server may have.
    #[error("no compute capacity available: this server runs its limit of {0} sandboxes")]
    Full(usize),
    /// The host has no memory for it.
    #[error("not enough host memory: {needed_mb} MiB needed, {free_mb} MiB free")]
    Memory {
        /// What it is expected to need.
        needed_mb: u64,
        /// What is left above the reserve.
        free_mb: u64,
    },
    /// The host's disk has no room for it.
    #[error("not enough host disk: {needed_mb} MiB needed, {free_mb} MiB free")]
    Disk {
        /// What it is expected to need.
        needed_mb: u64,
        /// What is left above the reserve.
        free_mb: u64,
    },
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Its size class is not baked yet.
    #[error(
        "template \"{template}\" is being prepared for {size}, {} s so far ({step}); try again soon",
        elapsed.as_secs()
    )]
    Baking {
        /// The template.
        template: TemplateName,
        /// The class.
        size: Size,
        /// What is being done.
        step: String,
        /// For how long.
        elapsed: Duration,
    },
    /// As many other size classes wait to be baked as may.
    #[error("{0} other sizes are being prepared; try again soon, or ask for one of those")]
    BakesWaiting(usize),
    /// Its size class could not be prepared.
    #[error("cannot prepare template \"{template}\" for {size}")]
    Bake {
        /// The template.
        template: TemplateName,
        /// The class.
        size: Size,
        /// Why.
        #[source]
        source: Arc<BakeError>,
    },
    /// The records refused it.
    #[error("cannot record the sandbox")]
    Journal(#[source] StoreError),
    /// Its machine did not start.
    #[error("the sandbox failed to start")]
    Machine(#[source] EngineError),
    /// The network did not take its machine.
    #[error("the sandbox's network is not available")]
    Network(#[source] GatewayError),
    /// Its directory could not be made.
    #[error("the sandbox has no place on disk")]
    Directory(#[source] std::io::Error),
    /// Its machine or agent was not ready in time.
    #[error("the sandbox was not ready within {} seconds", .0.as_secs())]
    NotReady(Duration),
    /// It was deleted before it was ready.
    #[error("the sandbox was deleted while it was being created")]
    Deleted,
    /// The sandbox that it was to be a fork of was not forked.
    #[error("the sandbox could not be forked")]
    NotForked,
}

/// Why a volume is not made, given or deleted. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// There is no such volume.
    #[error("volume not found: {0}")]
    NotFound(VolumeName),
    /// There is one of this name.
    #[error("volume {0} exists already")]
    Exists(VolumeName),
    /// A sandbox has it, so it is not deleted.
    #[error("volume {name} is attached to sandbox {holder}; delete that first")]
    Attached {
        /// The volume.
        name: VolumeName,
        /// One that has it.
        holder: String,
    },
    /// A sandbox has it in a way that another cannot join.
    #[error(
        "volume {name} is attached to sandbox {holder}, {}; it has many readers or one writer",
        if *.writes { "which writes to it" } else { "which reads it" }
    )]
    InUse {
        /// The volume.
        name: VolumeName,
        /// One that has it.
        holder: String,
        /// Whether that one writes.
        writes: bool,
    },
    /// As many volumes as this server may have.
    #[error("this server has its limit of {0} volumes; delete one first")]
    Quota(usize),
    /// The host's disk has no room for it.
    #[error("not enough host disk: {needed_mb} MiB needed, {free_mb} MiB free")]
    Disk {
        /// What it is expected to need.
        needed_mb: u64,
        /// What is left above the reserve.
        free_mb: u64,
    },
    /// The engine has none.
    #[error("volumes are not supported by the {0} engine yet; start the server with --engine qemu")]
    Unsupported(&'static str),
    /// The records refused it.
    #[error("cannot record the volume")]
    Journal(#[source] StoreError),
    /// Its disk could not be made or is damaged.
    #[error("the disk of the volume cannot be used")]
    Engine(#[source] EngineError),
    /// Its files could not be read, made or removed.
    #[error("the files of the volume cannot be used")]
    Files(#[source] std::io::Error),
}

/// Why a sandbox has no children. Nothing of them is left, and it goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// There is no such sandbox.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// Its state forbids it, or it ended meanwhile.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Machines are not forked here.
    #[error("this server does not fork sandboxes: {0}")]
    Unsupported(String),
    /// Its machine could not be copied.
    #[error("the sandbox could not be forked")]
    Machine(#[source] EngineError),
    /// There is no room for the children, or none of them became ready.
    #[error(transparent)]
    Child(#[from] CreateError),
}

/// Why there is no snapshot. Nothing of it is left, and the sandbox goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The sandbox cannot be copied, which is how a snapshot begins.
    #[error(transparent)]
    Copy(#[from] ForkError),
    /// The host's disk has no room for it.
    #[error("not enough host disk: {needed_mb} MiB needed, {free_mb} MiB free")]
    Disk {
        /// What it takes at most.
        needed_mb: u64,
        /// What there is.
        free_mb: u64,
    },
    /// The engine could not write it.
    #[error("the snapshot could not be taken")]
    Engine(#[source] EngineError),
    /// It could not be put in its place.
    #[error("the snapshot could not be written")]
    Write(#[source] std::io::Error),
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// Why a snapshot was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteSnapshotError {
    /// There is no such snapshot.
    #[error(transparent)]
    NotFound(#[from] NoSnapshot),
    /// Its files could not be moved away.
    #[error("the snapshot could not be deleted")]
    Files(#[source] std::io::Error),
}

/// Why a guest cannot be asked for anything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Not ready yet.
    #[error("sandbox {0} is still being created")]
    Creating(SandboxId),
    /// Standing still.
    #[error("sandbox is paused; resume it first")]
    Paused(SandboxId),
    /// Without a machine.
    #[error("sandbox is hibernated; wake it first")]
    Hibernated(SandboxId),
    /// Without a machine, and it did not get one although it was needed.
    #[error("sandbox is hibernated and could not be woken: {1}")]
    NotWoken(SandboxId, NoWake),
    /// Over.
    #[error("sandbox {id} ended: {reason}")]
    Ended {
        /// The sandbox.
        id: SandboxId,
        /// How.
        reason: EndReason,
    },
}

/// Why a hibernated sandbox is not woken. Nothing of it is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWake {
    /// The server runs as many as it may.
    #[error("this server runs its limit of sandboxes")]
    Full,
    /// The host has no memory for it.
    #[error("not enough host memory")]
    Memory,
    /// The host's disk has no room for it.
    #[error("not enough host disk")]
    Disk,
    /// The server is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// It was taken with another version of its template, of the engine or of the host.
    #[error("its template, the engine or the host is another one now")]
    Stale,
    /// Its machine did not start.
    #[error("its machine did not start")]
    Failed,
}

impl From<&CreateError> for NoWake {
    fn from(error: &CreateError) -> Self {
        match error {
            CreateError::Full(_) => Self::Full,
            CreateError::Memory { .. } => Self::Memory,
            CreateError::Disk { .. } => Self::Disk,
            CreateError::ShuttingDown => Self::ShuttingDown,
            CreateError::StaleSnapshot { .. } => Self::Stale,
            _ => Self::Failed,
        }
    }
}

/// Why a sandbox could not be paused, resumed, changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Its state forbids it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It is gone.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// The records refused the change.
    #[error("cannot record the change")]
    Journal(#[source] StoreError),
    /// The machine refused.
    #[error("the machine did not obey")]
    Machine(#[source] EngineError),
    /// It could not be made files.
    #[error(transparent)]
    NotHibernated(Box<SnapshotError>),
    /// It could not be made a machine again.
    #[error("the sandbox could not be woken")]
    NotWoken(SandboxId, #[source] Box<CreateError>),
    /// The network did not take a policy, so the sandbox was taken off it.
    #[error(
        "the policy is not in force: the sandbox reaches nothing until its egress is set again"
    )]
    CutOff(#[source] Box<CreateError>),
}

/// Why a sandbox was not promoted. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// There is no such sandbox.
    #[error(transparent)]
    NotFound(#[from] NotFound),
    /// It is no child of a tree.
    #[error("sandbox {0} is not one of a tree; `fork-tree` makes them")]
    NoTree(SandboxId),
    /// The requester means another tree.
    #[error("sandbox {0} is not one of that tree")]
    OtherTree(SandboxId),
    /// Its limits could not be changed.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The guest cannot be asked, or ended meanwhile.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Its time limit passed; its process tree was killed.
    #[error("exec timeout: command exceeded {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// The guest refused to start it, with the guest's words.
    #[error("cannot run the command: {0}")]
    Refused(String),
    /// The guest is busy with too many things.
    #[error("too many operations on this sandbox at once")]
    TooMany,
    /// The conversation with the guest failed.
    #[error("the guest agent failed")]
    Agent(#[source] AgentError),
}

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// The guest cannot be asked, or ended meanwhile.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no such file.
    #[error("no such file or directory: {0}")]
    NotFound(String),
    /// The guest refused, with the guest's words.
    #[error("{0}")]
    Refused(String),
    /// The guest is busy with too many things.
    #[error("too many operations on this sandbox at once")]
    TooMany,
    /// The guest's disk is full.
    #[error("the sandbox's disk is full")]
    DiskFull,
    /// The conversation with the guest failed.
    #[error("the guest agent failed")]
    Agent(#[source] AgentError),
}

/// An error with its causes on one line, for the log.
pub struct Chain<'a>(pub &'a (dyn std::error::Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
