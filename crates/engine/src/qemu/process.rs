//! One QEMU process in its jail, with its control channels.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, Weak};

use pandastack_jail::{Cgroup, CgroupLimits, Cgroups, Child, Confine, Filter, Program, Rlimits};
use pandastack_types::Size;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::channels::{self, Identities, Ours};
use super::command::{Start, TRANSLATION_CACHE_MB, arguments, environment};
use super::control::Control;
use super::qmp::{Events, Qmp};
use super::runtime::{KEEPER, Runtime};
use crate::EngineError;

/// Bytes of QEMU's complaints that are kept.
const MAX_COMPLAINTS: usize = 16 << 10;

/// Host memory that a machine may use beyond its guest's: translated code, QEMU's heap and
/// libraries, and page cache of its private disk, which is charged to it.
const OVERHEAD_BYTES: u64 = (TRANSLATION_CACHE_MB as u64 + 192) << 20;

/// Share of the processors of a machine that somebody waits for: everybody's default.
pub(super) const CPU_WEIGHT: u32 = 100;

/// Processes and threads of one machine.
const MACHINE_TASKS: u32 = 128;

/// Processes and threads of a machine and all of its forks: the kernel counts them together, in
/// the user namespace that they descend from. Where a host has control groups, [`MACHINE_TASKS`]
/// bounds each.
const FAMILY_TASKS: u64 = 16 << 10;

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

/// A running process. Dropping it kills the process.
pub(super) struct Process {
    child: Arc<Child>,
    complaints: Arc<Mutex<String>>,
    pub qmp: Qmp,
    pub events: Option<Events>,
    pub agent: Option<UnixStream>,
    pub control: Option<Control>,
    /// Its own ends of the channels.
    pub identities: Identities,
    /// Removed, once empty, after the process was reaped.
    cgroup: Option<Arc<Cgroup>>,
}

/// What every machine of one engine shares.
pub(super) struct Host {
    pub runtime: Runtime,
    pub filter: Arc<Filter>,
    pub cgroups: Cgroups,
}

impl Host {
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
) -> Result<Process, EngineError> {
    let (ours, theirs) = channels::open().map_err(EngineError::Spawn)?;
    let identities = theirs.identities().map_err(EngineError::Spawn)?;
    let null = Arc::new(OwnedFd::from(open_null()?));
    let [stderr, qmp, agent, control] = theirs.in_order().map(Arc::new);

    // In the order of `command::fd`.
    let mut descriptors =
        vec![null.clone(), null, stderr, qmp, agent, control, files.memory, file(files.root)];
    descriptors.push(file(files.disk));
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
        rlimits: Rlimits { file_size: 64 << 30, descriptors: 1024, processes: FAMILY_TASKS },
        confine: Confine::Root,
        filter: host.filter.clone(),
        cgroup: cgroup.clone(),
    };
    let child = tokio::task::spawn_blocking(move || pandastack_jail::spawn(program))
        .await
        .map_err(|e| EngineError::Spawn(io::Error::other(e)))?
        .map_err(|e| EngineError::Spawn(io::Error::other(ErrorChain(&e).to_string())))?;
    let child = Arc::new(child);

    let Channels { qmp, rest } = Channels::new(ours)?;
    match Qmp::connect(qmp).await {
        Ok(monitor) => Ok(Process::new(child, monitor, rest, identities, cgroup)),
        Err(error) => {
            child.kill();
            let _ = ended(&child).await;
            let said = rest.complaints.lock().expect("no panic under this lock").clone();
            Err(if said.is_empty() { error } else { EngineError::Ended(said.trim().to_owned()) })
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
    complaints: Arc<Mutex<String>>,
    agent: UnixStream,
    control: Control,
}

impl Channels {
    pub fn new(ours: Ours) -> Result<Self, EngineError> {
        let rest = Rest {
            complaints: collect(ours.complaints)?,
            agent: into_tokio(ours.agent)?,
            control: Control::new(ours.control).map_err(EngineError::Spawn)?,
        };
        Ok(Self { qmp: into_tokio(ours.qmp)?, rest })
    }
}

impl Process {
    /// The process of a forked machine, which has what its parent's had.
    pub fn forked(
        child: Child,
        channels: Channels,
        identities: Identities,
        cgroup: Option<Arc<Cgroup>>,
    ) -> Self {
        let monitor = Qmp::adopt(channels.qmp);
        Self::new(Arc::new(child), monitor, channels.rest, identities, cgroup)
    }

    fn new(
        child: Arc<Child>,
        (qmp, events): (Qmp, Events),
        rest: Rest,
        identities: Identities,
        cgroup: Option<Arc<Cgroup>>,
    ) -> Self {
        Self {
            child,
            complaints: rest.complaints,
            qmp,
            events: Some(events),
            agent: Some(rest.agent),
            control: Some(rest.control),
            identities,
            cgroup,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    pub fn child(&self) -> &Arc<Child> {
        &self.child
    }

    /// What QEMU wrote to its standard error so far.
    pub fn complaints(&self) -> String {
        self.complaints.lock().expect("no panic under this lock").trim().to_owned()
    }

    /// The group, as long as the process has not been reaped.
    pub fn cgroup(&self) -> Weak<Cgroup> {
        self.cgroup.as_ref().map(Arc::downgrade).unwrap_or_default()
    }

    /// The group to remove once the process is reaped.
    pub fn take_cgroup(&mut self) -> Option<Arc<Cgroup>> {
        self.cgroup.take()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill();
    }
}

/// Waits for a process to end and collects it.
pub(super) async fn ended(child: &Arc<Child>) -> io::Result<()> {
    let pidfd = child.pidfd().try_clone()?;
    #[expect(deprecated, reason = "an OwnedFd stays open as long as the AsyncFd that owns it")]
    let watched = AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)?;
    drop(watched.readable().await?);
    child.reap();
    Ok(())
}

/// Guest memory counts twice. A guest that is the first to touch a page which is zero in its bake
/// makes the kernel allocate that page in the shared memory too, before it copies it: one page
/// that every later machine profits from, charged to the one that came first.
fn limits(size: Size) -> CgroupLimits {
    let memory_bytes = 2 * size.memory_bytes() + OVERHEAD_BYTES;
    CgroupLimits { memory_bytes, pids: MACHINE_TASKS, cpu_weight: CPU_WEIGHT }
}

fn open_null() -> Result<File, EngineError> {
    File::options().read(true).write(true).open("/dev/null").map_err(EngineError::Spawn)
}

fn c_string(text: &str) -> Result<CString, EngineError> {
    CString::new(text).map_err(|e| EngineError::Spawn(e.into()))
}

fn file(file: File) -> Arc<OwnedFd> {
    Arc::new(file.into())
}

fn into_tokio(stream: StdUnixStream) -> Result<UnixStream, EngineError> {
    stream.set_nonblocking(true).map_err(EngineError::Spawn)?;
    UnixStream::from_std(stream).map_err(EngineError::Spawn)
}

/// Keeps the first bytes of a pipe and throws the rest away, so that the writer never blocks.
fn collect(pipe: OwnedFd) -> Result<Arc<Mutex<String>>, EngineError> {
    let mut pipe = pipe::Receiver::from_owned_fd(pipe).map_err(EngineError::Spawn)?;
    let text = Arc::new(Mutex::new(String::new()));
    let kept = text.clone();
    tokio::spawn(async move {
        let mut buffer = [0u8; 1024];
        while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
            let mut text = kept.lock().expect("no panic under this lock");
            if text.len() < MAX_COMPLAINTS {
                text.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        }
    });
    Ok(text)
}

/// An error with its causes on one line.
pub(super) struct ErrorChain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
