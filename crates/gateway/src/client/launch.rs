//! Starting the gateway's process in its jail.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pandastack_jail::root::{self, KEEPER, READABLE, UNREADABLE};
use pandastack_jail::{Cgroup, CgroupLimits, Cgroups, Child, Confine, Filter, Program, Rlimits};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource, getrlimit};

use super::lock;

/// The gateway, in the jail.
const GATEWAY: &str = "/panda-gateway";
/// Its control group.
const GROUP: &str = "gateway";
/// Memory of the process: thousands of flows with full buffers.
const MEMORY: u64 = 2 << 30;
/// Its weight among machines, each of which has 100: it works for all of them, and where
/// processors are short a machine waits for its own turn only, not for the gateway's as well.
const CPU_WEIGHT: u32 = 1000;
/// Threads of the process: one per network, and a few.
const THREADS: u32 = 8 << 10;
/// Descriptors of the process, if the host lets us have so many: one per flow.
const DESCRIPTORS: u64 = 1 << 20;
/// Bytes that are kept of what it complains of.
const MAX_COMPLAINTS: usize = 8 << 10;

/// Programs of the jail.
pub struct Parts {
    /// `panda-keeper`, a static program.
    pub keeper: &'static [u8],
    /// `panda-gateway`, a static program.
    pub gateway: &'static [u8],
}

/// What it takes to start a process, again and again.
pub(super) struct Launcher {
    root: PathBuf,
    filter: Arc<Filter>,
    cgroups: Cgroups,
}

/// A process.
pub(super) struct Process {
    child: Child,
    complaints: Arc<Mutex<String>>,
    /// Removed, once empty, when the process is gone.
    _group: Option<Arc<Cgroup>>,
}

impl Process {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Ends it and waits until it is gone.
    pub fn end(&self) {
        self.child.kill();
        self.child.reap();
    }

    /// The first of what it wrote to its standard error.
    pub fn complaints(&self) -> String {
        lock(&self.complaints).trim().to_owned()
    }
}

impl Launcher {
    /// Makes the jail's root below `dir`.
    pub fn prepare(dir: &Path, parts: &Parts, cgroups: Cgroups) -> io::Result<Self> {
        let digest = |program: &[u8]| blake3::hash(program).to_hex()[..12].to_owned();
        let name = format!("gateway-{}-{}", digest(parts.gateway), digest(parts.keeper));
        let path = dir.join(name);
        let place = |staging: &Path| {
            root::place(staging, KEEPER, parts.keeper, UNREADABLE)?;
            root::place(staging, GATEWAY, parts.gateway, READABLE)
        };
        root::publish(dir, &path, place).map_err(io::Error::other)?;
        Ok(Self { root: path, filter: Arc::new(Filter::gateway()), cgroups })
    }

    /// Starts a process. Comes with the server's end of its control socket.
    pub async fn launch(&self) -> io::Result<(OwnedFd, Process)> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        let (pipe, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let name = format!("{GROUP}-{}", std::process::id());
        let limits = CgroupLimits { memory_bytes: MEMORY, pids: THREADS, cpu_weight: CPU_WEIGHT };
        let group = self.cgroups.create(&name, limits)?.map(Arc::new);
        let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
        let program = Program {
            root: self.root.clone(),
            init: c_string(KEEPER)?,
            path: c_string(GATEWAY)?,
            args: vec![c_string("panda-gateway")?],
            env: Vec::new(),
            descriptors: vec![Arc::new(theirs), Arc::new(null), Arc::new(stderr)],
            rlimits: Rlimits {
                file_size: 0,
                descriptors: getrlimit(Resource::Nofile)
                    .maximum
                    .map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS)),
                processes: u64::from(THREADS),
            },
            confine: Confine::HostNetwork,
            filter: self.filter.clone(),
            cgroup: group.clone(),
            lifeline: None,
        };
        let child = tokio::task::spawn_blocking(move || pandastack_jail::spawn(program));
        let child = child.await.map_err(io::Error::other)?.map_err(io::Error::other)?;
        let process = Process { child, complaints: collect(pipe)?, _group: group };
        Ok((ours, process))
    }
}

/// Keeps the first bytes of a pipe, and reads on so that the writer never blocks.
fn collect(pipe: OwnedFd) -> io::Result<Arc<Mutex<String>>> {
    let text: Arc<Mutex<String>> = Arc::default();
    let kept = text.clone();
    let mut pipe = File::from(pipe);
    std::thread::Builder::new().name("gateway-stderr".into()).spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = pipe.read(&mut buffer) {
            let mut text = lock(&kept);
            if text.len() < MAX_COMPLAINTS {
                text.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        }
    })?;
    Ok(text)
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(io::Error::from)
}
