//! The engine's contract: images, bakes and machines.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use pandastack_types::{Isolation, Size};
use serde::{Deserialize, Serialize};

use crate::agent::AgentClient;
use crate::disk::volume::VolumeSource;
use crate::error::EngineError;

/// What a guest boots from. All files are read-only and outlive every machine made of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GuestImage {
    /// Linux kernel, bzImage.
    pub kernel: PathBuf,
    /// Uncompressed initramfs whose `/init` is the agent.
    pub initrd: PathBuf,
    /// Root file system, EROFS.
    pub root: PathBuf,
    /// Shell lines run once, before the bake, so that what they read is in its memory.
    pub preload: Vec<String>,
    /// Shell lines run before the bake and again in every zygote or restored parked machine, so
    /// that what tenants run first is already translated there.
    pub warm_up: Vec<String>,
    /// Content address of all of the above.
    pub digest: String,
}

/// A frozen machine on disk, ready to be restored any number of times.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bake {
    /// Directory with the engine's own files.
    pub dir: PathBuf,
    /// The image it was made of.
    pub image: GuestImage,
    /// Its vCPUs, memory and disk.
    pub size: Size,
    /// Content address: image, size, engine and everything of the host that it depends on.
    pub key: String,
}

/// What becomes of a machine that a snapshot was taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on as it was.
    GoesOn,
    /// It is about to end, since it is files now: what is kept back for that may be used up.
    Ends,
}

/// Gets one line per step of a bake.
pub type BakeLog<'a> = dyn Fn(&str) + Send + Sync + 'a;

/// Runs machines. One implementation per way of running a guest's instructions.
#[async_trait]
pub trait Engine: Send + Sync {
    /// `qemu` or `kvm`.
    fn name(&self) -> &'static str;

    /// The program that runs its guests, for people.
    fn version(&self) -> String;

    /// How strong the wall around its machines is.
    fn isolation(&self) -> Isolation;

    /// Content address of a bake of `image` at `size` by this engine on this host. A bake with
    /// another key must not be restored.
    fn bake_key(&self, image: &GuestImage, size: Size) -> String;

    /// Boots `image`, warms it up and writes the bake's files into the empty directory `out`.
    /// `log` gets one line per step. The caller publishes `out` by renaming it.
    async fn bake(
        &self,
        image: &GuestImage,
        size: Size,
        out: &Path,
        log: &BakeLog<'_>,
    ) -> Result<(), EngineError>;

    /// Starts a machine from a bake. It stands still, and its private files are in the existing
    /// empty directory `dir`, which [`Machine::kill`] leaves to the caller to remove.
    async fn restore(&self, bake: &Bake, dir: &Path) -> Result<Box<dyn Machine>, EngineError>;

    /// Whether a machine is warmer once it has run: translated code is no part of a bake, and a
    /// machine that is parked or forked should have what tenants run first.
    fn warms_by_running(&self) -> bool;

    /// Proves that machines of this host can be forked, by forking one of `bake` and looking at
    /// both sides: answers, memory, disk. Done once per engine; later calls return the outcome.
    /// `scratch` is an existing empty directory for the files of the proof, which stay the
    /// caller's to remove. An error says why [`Machine::fork`] must not be used.
    async fn prove_fork(&self, _bake: &Bake, _scratch: &Path) -> Result<(), EngineError> {
        Err(EngineError::NoFork("this engine does not fork".into()))
    }

    /// How many volumes a machine can have; 0 if this engine has none.
    fn volume_slots(&self) -> usize {
        0
    }

    /// Reads every file of a bake or snapshot and compares it with what it was when it was made.
    /// `false` if the engine keeps nothing to compare with. Blocks for as long as reading takes.
    fn verify(&self, _dir: &Path) -> Result<bool, EngineError> {
        Ok(false)
    }

    /// Takes over a machine that another server left running, of which there are the directory and
    /// what [`Machine::kept`] gave. It stands still or runs, as it was left. An error says why it is
    /// no machine of ours; it has to be ended then.
    async fn adopt(&self, _dir: &Path, _kept: Kept) -> Result<Box<dyn Machine>, EngineError> {
        Err(EngineError::NotAdopted("machines of this engine end with their server".into()))
    }

    /// Ends and removes what the machine whose directory had this name left on the host besides
    /// that directory: recovery after the server that owned it was killed.
    fn clear(&self, _machine: &str) {}

    /// Resolves when nothing is left of any machine, also of those that were dropped without a
    /// wait for their end.
    async fn settled(&self) {}
}

/// One machine. Dropping it kills it.
#[async_trait]
pub trait Machine: Send + Sync {
    /// The way into the guest. Everything that comes out of it is hostile.
    fn agent(&self) -> &AgentClient;

    /// Process id of the machine on the host.
    fn pid(&self) -> u32;

    /// A copy of the descriptor that leads to its network device: a `SOCK_SEQPACKET` socket that
    /// does not block, with one Ethernet frame per datagram, without anything before it. The
    /// device is there whatever the machine may reach, and this is its only way: until somebody
    /// reads here, the guest talks to nobody. Its frames then wait, in the socket and after that
    /// in the guest; nothing that is done to the machine waits for them.
    ///
    /// Every machine has its own, a copy too: what one sends never comes out of another's. A frame
    /// that the machine had taken in when it was copied is in the copy as well, as is everything
    /// else that it knew. The other end closes with the machine's process.
    fn network(&self) -> io::Result<OwnedFd>;

    /// Makes it yield to machines that somebody waits for, or makes it one of those again.
    fn set_background(&self, background: bool);

    /// Does ahead of time what [`Machine::run`] would, where that is possible: for a machine that
    /// stands still and that nobody waits for yet. Says where the time went.
    async fn make_ready(&self) -> Result<Stages, EngineError> {
        Ok(Stages::new())
    }

    /// Puts a volume into one of the machine's empty slots, and says how many bytes the guest finds
    /// there. The machine has not run for anybody yet. A fork has a copy under a private layer in
    /// the same slot. A snapshot has the copy alone: what is made of it gets its volumes anew.
    async fn attach(&self, _slot: usize, _volume: VolumeSource) -> Result<u64, EngineError> {
        Err(EngineError::NoVolumes)
    }

    /// Lets the vCPUs run, and says where the time went.
    async fn run(&self) -> Result<Stages, EngineError>;

    /// Stops the vCPUs; memory and devices stay.
    async fn pause(&self) -> Result<(), EngineError>;

    /// Makes one copy of this machine per directory: memory, devices and disk of one instant, the
    /// same for all. The machine itself goes on as it was, running or paused; it stands still
    /// for milliseconds, whatever its memory and disk hold. The copies stand still and are
    /// nobody's yet: each needs an identity of its own. The directories exist and are empty.
    /// All copies or none.
    async fn fork(&self, _dirs: &[&Path]) -> Result<Forked, EngineError> {
        Err(EngineError::NoFork("this engine does not fork".into()))
    }

    /// Writes the machine as it is at this instant into the existing empty directory `out`, whose
    /// content is then that of a [`Bake`] of the same image and size, independent of everything
    /// else. The machine goes on as it was after milliseconds; writing takes longer. `scratch`
    /// is an existing empty directory that is used meanwhile and stays the caller's to remove.
    async fn snapshot(
        &self,
        _scratch: &Path,
        _out: &Path,
        _then: After,
    ) -> Result<(), EngineError> {
        Err(EngineError::NoFork("this engine does not fork".into()))
    }

    /// Ends the machine now and waits until its process is gone. Idempotent.
    async fn kill(&self);

    /// Resolves when the machine has ended, by itself or by [`Machine::kill`].
    async fn exited(&self) -> Exit;

    /// What it costs the host at this moment.
    fn usage(&self) -> Option<Usage>;

    /// What another server needs to take it over ([`Engine::adopt`]) if this one dies. It lives for
    /// as long as somebody holds the descriptors. `None` if it ends with this server.
    fn kept(&self) -> io::Result<Option<Kept>> {
        Ok(None)
    }
}

/// Everything but its directory that is needed to go on with a machine.
#[derive(Debug)]
pub struct Kept {
    /// The engine's own description of it.
    pub note: String,
    /// The ways to it. The first is its process's pidfd.
    pub descriptors: Vec<OwnedFd>,
}

/// Steps of an operation in their order, with the time that each took. They add up to the whole, as
/// far as it was measured; an engine that measures nothing has none.
pub type Stages = Vec<(String, Duration)>;

/// Copies of a machine.
#[derive(Default)]
pub struct Forked {
    /// In the order of their directories.
    pub machines: Vec<Box<dyn Machine>>,
    /// How long the original stood still.
    pub pause: Duration,
    /// The steps up to the first copy.
    pub stages: Stages,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off or asked for a reset.
    GuestShutdown,
    /// The guest kernel panicked.
    GuestPanic,
    /// The process died without a word from the guest.
    Died,
    /// [`Machine::kill`] ended it.
    Killed,
}

/// Host resources of a machine's process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time used so far.
    pub cpu: Duration,
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Proportional share of resident bytes.
    pub pss_bytes: u64,
    /// Address space in bytes.
    pub vsz_bytes: u64,
    /// Threads.
    pub threads: u64,
}
