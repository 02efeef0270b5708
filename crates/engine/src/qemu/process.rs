//! One QEMU process in its jail, with its control channels.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pandastack_jail::{Cgroup, CgroupLimits, Cgroups, Child, Confine, Filter, Program};
use pandastack_types::Size;
use tokio::net::UnixStream;

use super::channels::{self, Identities, Ours};
use super::command::{Start, TRANSLATION_CACHE_MB, arguments, environment};
use super::control::Control;
use super::qmp::{Events, Qmp};
use super::runtime::Runtime;
use crate::EngineError;
use crate::generations::Generations;
use crate::process::{self, Complaints, Process, c_string, into_tokio};
use pandastack_jail::root::KEEPER;

/// Host memory that a machine may use beyond its guest's: translated code, QEMU's heap and
/// libraries, and page cache of its private disk, which is charged to it.
const OVERHEAD_BYTES: u64 = (TRANSLATION_CACHE_MB as u64 + 192) << 20;

/// Files of a machine, by what they are for; numbers are assigned by [`start`].
pub(super) struct Files {
    pub memory: Arc<OwnedFd>,
    pub root: File,
    pub disk: File,
    /// Kernel and initramfs when booting; the disk's lowest layer and device state when restoring.
    pub rest: [File; 2],
    /// The disk's other frozen layers, lowest first, when restoring.
    pub layers: Vec<OwnedFd>,
}

/// A running QEMU and the ways to it. Dropping it kills the process.
pub(super) struct Emulator {
    pub process: Process,
    pub qmp: Qmp,
    pub events: Option<Events>,
    pub agent: Option<UnixStream>,
    pub control: Option<Control>,
    /// The gateway's end of its network device.
    pub net: OwnedFd,
    /// Copies of all of these, for another server.
    pub copies: Vec<OwnedFd>,
    /// Its own ends of the channels.
    pub identities: Identities,
}

/// What every machine of one engine shares.
pub(super) struct Host {
    pub runtime: Runtime,
    pub filter: Arc<Filter>,
    pub cgroups: Cgroups,
    pub generations: Generations,
}

impl Host {
    /// The control group of a machine that another server left.
    pub fn left_group(&self, name: &str) -> Option<Arc<Cgroup>> {
        self.cgroups.adopt(name).map(Arc::new)
    }

    /// The control group of a new machine.
    pub fn group(&self, name: &str, size: Size) -> Result<Option<Arc<Cgroup>>, EngineError> {
        let group = self.cgroups.create(name, limits(size)).map_err(EngineError::Spawn)?;
        Ok(group.map(Arc::new))
    }
}

/// Jails and starts QEMU, and opens its monitor.
pub(super) async fn start(
    host: &Host,
    name: &str,
    size: Size,
    how: Start,
    files: Files,
    lifeline: Option<OwnedFd>,
) -> Result<Emulator, EngineError> {
    let (ours, theirs) = channels::open().map_err(EngineError::Spawn)?;
    let identities = theirs.identities().map_err(EngineError::Spawn)?;
    let null = process::open_null()?;
    let own = theirs.in_order().map(Arc::new);

    // In the order of `command::fd`.
    let mut descriptors = vec![null.clone(), null];
    descriptors.extend(own);
    descriptors.extend([files.memory, file(files.root), file(files.disk)]);
    descriptors.extend(files.rest.map(file));
    descriptors.extend(files.layers.into_iter().map(Arc::new));

    let cgroup = host.group(name, size)?;
    let path = host.runtime.program.to_string_lossy().into_owned();
    let program = Program {
        root: host.runtime.root.clone(),
        init: c_string(KEEPER)?,
        args: arguments(&path, size, how),
        env: environment(),
        path: c_string(&path)?,
        descriptors,
        rlimits: process::rlimits(),
        confine: Confine::Root,
        filter: host.filter.clone(),
        cgroup: cgroup.clone(),
        lifeline,
    };
    let child = process::spawn(program).await?;

    let Channels { qmp, rest } = Channels::new(ours)?;
    let process = Process::new(child, rest.complaints.clone(), cgroup);
    match Qmp::connect(qmp).await {
        Ok(monitor) => Ok(Emulator::new(process, monitor, rest, identities)),
        Err(error) => {
            process.end().await;
            let said = rest.complaints.last().await;
            Err(if said.is_empty() { error } else { EngineError::Ended(said) })
        }
    }
}

/// The server's ends, ready for use.
pub(super) struct Channels {
    qmp: UnixStream,
    rest: Rest,
}

/// Those besides the monitor's, which begins with a greeting or without.
struct Rest {
    complaints: Complaints,
    agent: UnixStream,
    control: Control,
    net: OwnedFd,
    copies: Vec<OwnedFd>,
}

impl Channels {
    pub fn new(ours: Ours) -> Result<Self, EngineError> {
        let rest = Rest {
            copies: ours.copies().map_err(EngineError::Spawn)?,
            complaints: Complaints::collect(ours.complaints)?,
            agent: into_tokio(ours.agent)?,
            control: Control::new(ours.control).map_err(EngineError::Spawn)?,
            net: ours.net,
        };
        Ok(Self { qmp: into_tokio(ours.qmp)?, rest })
    }
}

impl Emulator {
    /// That of a forked machine, which has what its parent's had.
    pub fn forked(
        child: Child,
        channels: Channels,
        identities: Identities,
        group: Option<Arc<Cgroup>>,
    ) -> Self {
        let Channels { qmp, rest } = channels;
        let process = Process::new(Arc::new(child), rest.complaints.clone(), group);
        Self::new(process, Qmp::adopt(qmp), rest, identities)
    }

    /// That of a machine that another server left, which may be in the middle of an answer.
    pub async fn adopted(
        child: Child,
        channels: Channels,
        identities: Identities,
        group: Option<Arc<Cgroup>>,
    ) -> Result<Self, EngineError> {
        let Channels { qmp, rest } = channels;
        let process = Process::new(Arc::new(child), rest.complaints.clone(), group);
        let monitor = Qmp::resume(qmp).await?;
        Ok(Self::new(process, monitor, rest, identities))
    }

    fn new(
        process: Process,
        (qmp, events): (Qmp, Events),
        rest: Rest,
        identities: Identities,
    ) -> Self {
        Self {
            process,
            qmp,
            events: Some(events),
            agent: Some(rest.agent),
            control: Some(rest.control),
            net: rest.net,
            copies: rest.copies,
            identities,
        }
    }
}

/// Guest memory counts twice. A guest that is the first to touch a page which is zero in its bake
/// makes the kernel allocate that page in the shared memory too, before it copies it: one page
/// that every later machine profits from, charged to the one that came first.
fn limits(size: Size) -> CgroupLimits {
    process::of_group(2 * size.memory_bytes() + OVERHEAD_BYTES)
}

fn file(file: File) -> Arc<OwnedFd> {
    Arc::new(file.into())
}
