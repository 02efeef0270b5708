//! What a supervisor and a monitor say to each other.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` socket: a [`Request`] or [`Reply`] in
//! postcard, with descriptors attached (`SCM_RIGHTS`) whose meanings are in the message itself
//! ([`Role`]). A monitor answers requests in their order, one at a time; what it says unasked is
//! [`Reply::Ended`] alone.
//!
//! ```text
//!   Start ─▶ standing still ⇄ [Ready,] Run / Pause ─▶ running
//!                 │  ▲                          │
//!       Attach,   │  └──── a copy is born here ─┤ Fork
//!       Save,   ◀─┘                             ▼
//!       Record                           Ended, and the process exits
//! ```
//!
//! Both sides bound what they read: [`MAX_MESSAGE`] bytes and [`MAX_DESCRIPTORS`] descriptors.

mod channel;

use serde::{Deserialize, Serialize};

pub use channel::{Received, receive, send};
pub use pandastack_datagram::WireError;

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Most descriptors of one message: the kernel takes 253 (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 200;
/// Number of the control socket when the monitor starts. 0 and 1 lead nowhere, 2 takes
/// complaints.
pub const CONTROL_FD: i32 = 3;

/// What an attached descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// `/dev/kvm`.
    Kvm,
    /// Stream to the guest's agent.
    Agent,
    /// Frames of the guest's network device: a connected `SOCK_SEQPACKET` socket, one each. Not a
    /// datagram socket, which reaches other names of its host.
    Net,
    /// Root file system, read-only.
    Root,
    /// The writable disk as a plain file: read-write when booting, read-only below layers.
    Disk,
    /// A frozen qcow2 layer, read-only; lowest first.
    Layer,
    /// The writable qcow2 layer on top.
    Top,
    /// Kernel to boot.
    Kernel,
    /// Its initramfs.
    Initrd,
    /// Guest memory of a bake.
    Memory,
    /// Pages that differ from it ([`Request::Save`] of a machine that was restored writes one).
    Diff,
    /// Saved state.
    State,
    /// Pages that a machine touches first.
    WorkingSet,
    /// The process's own `/proc/PID/pagemap`.
    Pagemap,
    /// Control socket of a copy.
    Control,
    /// Standard error of a copy.
    Complaints,
    /// Control file of a group that the copy joins.
    Group,
    /// Control file of a group that the copy's keeper joins.
    KeeperGroup,
    /// The layer that was on top of a disk until now, reopened read-only.
    Frozen,
    /// The source's own new top layer of that disk.
    NewTop,
    /// Readable or not, a process: a reply's pidfd.
    Process,
}

/// A request, with the meaning of each attached descriptor in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<T> {
    /// What is said.
    pub body: T,
    /// One per attached descriptor.
    pub roles: Vec<Role>,
}

/// From the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Becomes a machine that stands still. The first request, and the only one of its kind.
    /// Comes with [`Role::Kvm`], `Agent`, `Root`, `Disk`, maybe `Net`, without which its guest talks
    /// to nobody; for a boot with `Kernel` and `Initrd`, for a restore with any `Layer`s, `Top`,
    /// `Memory`, `State`, maybe `Diff` and `WorkingSet`.
    Start(Start),
    /// Does ahead of time what running would, for a machine that stands still and that nobody waits
    /// for yet. The answer is [`Reply::Ran`].
    Ready,
    /// Lets the vCPUs run.
    Run,
    /// Stops them; memory and devices stay.
    Pause,
    /// Copies the machine into a new process. The answer is [`Reply::Forked`], and the copy says
    /// [`Reply::Born`] on its own control socket. Comes with `Control`, `Complaints`, `Agent`,
    /// maybe `Net`, any `Group`s and `KeeperGroup`s, a `Top` for each of [`Fork::disks`], and a
    /// `Frozen` and a `NewTop` for each of those whose top layer is to be frozen, in their order. A
    /// top layer that is not frozen must be empty.
    Fork(Fork),
    /// Puts a volume into an empty slot of the machine, which stands still. Comes with `Disk`, any
    /// `Layer`s, and `Top`. A snapshot has the slot empty again.
    Attach(Attach),
    /// Writes the machine, which stands still. Comes with `State`, and `Memory` if it was booted
    /// or `Diff` if it was restored, all writable and empty; `Pagemap` where the supervisor may.
    Save,
    /// Writes which pages the machine touched since it was restored. Comes with `WorkingSet`,
    /// writable and empty, and `Pagemap`.
    Record,
    /// Asks for what the guest printed.
    Console,
    /// Runs a guest of a few instructions to prove that KVM works here. Comes with `Kvm`.
    Prove,
}

/// How a machine begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// vCPUs, 1 to 8.
    pub cpus: u8,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// A command line boots the kernel; without one the machine is restored.
    pub boot: Option<String>,
}

/// How a machine is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fork {
    /// The supervisor will look into the copy's `/proc`: it is to be saved, and never runs.
    pub readable: bool,
    /// The disks that are written to, all of them: the one that every machine has, and volumes.
    pub disks: Vec<DiskFork>,
}

/// What becomes of a disk of which both sides have a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFork {
    /// The slot of a volume; `None` is the disk that every machine has.
    pub slot: Option<u8>,
    /// Whether its top layer becomes one that both sides read.
    pub freezes: bool,
}

/// Which volume goes where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The slot.
    pub slot: u8,
    /// What the guest flushes has to survive a failure of the host's power.
    pub lasting: bool,
}

/// From the monitor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// It is done, and took so long.
    Ran(Stages),
    /// A copy was made; its pidfd is attached ([`Role::Process`]).
    Forked(Stages),
    /// From a copy: it has its descriptors and stands still.
    Born(Stages),
    /// What the guest printed last.
    Console(Vec<u8>),
    /// It was not done, and the machine is as it was before.
    Failed(Failure),
    /// The machine is over; the process exits.
    Ended(End),
}

/// Steps of a request with the microseconds each took, in their order.
pub type Stages = Vec<(String, u32)>;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The request makes no sense, or not now.
    #[error("the monitor refused: {0}")]
    Refused(String),
    /// A file is damaged or of another version.
    #[error("{file} cannot be used: {why}")]
    Damaged {
        /// Which.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The snapshot was taken on a processor that this one is not.
    #[error("it was saved on another processor: {0}")]
    Foreign(String),
    /// A copy was refused because namespaces are nested too deep: `ENOSPC` of clone(2), and
    /// `EUSERS` before Linux 4.9.
    #[error("the kernel nests no more namespaces")]
    TooDeep,
    /// The kernel refused something.
    #[error("the kernel refused to {what}: {why}")]
    Kernel {
        /// What was asked of it.
        what: String,
        /// Its answer.
        why: String,
    },
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It powered itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// Its kernel panicked, as it said on its console before it asked for a reset.
    Panic,
    /// It crashed: a triple fault, or a state that KVM cannot run.
    Crash,
}
