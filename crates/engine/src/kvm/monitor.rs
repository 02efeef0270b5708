//! One monitor process in its jail, and the ways to it.
//!
//! A monitor is born with four descriptors and nothing else: 0 and 1 lead nowhere, 2 takes its
//! complaints, 3 is the control socket. Whatever it works on comes over that.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use pandastack_jail::{Cgroup, CgroupLimits, Cgroups, Confine, Filter, Program};
use pandastack_types::Size;
use pandastack_vmm::control::{Request, Role, Start};
use tokio::net::UnixStream;

use super::channels;
use super::client::{Attached, Client, START};
use super::runtime::{MONITOR, Runtime};
use crate::EngineError;
use crate::generations::Generations;
use crate::process::{self, Complaints, Process, c_string, into_tokio};
use pandastack_jail::root::KEEPER;

/// What every machine of one engine shares.
pub(super) struct Host {
    pub runtime: Runtime,
    pub filter: Arc<Filter>,
    pub cgroups: Cgroups,
    /// `/dev/kvm`, opened once: a jail has no devices.
    pub kvm: File,
    pub generations: Generations,
}

impl Host {
    /// The control group of a new machine.
    pub fn group(&self, name: &str, size: Size) -> Result<Option<Arc<Cgroup>>, EngineError> {
        let group = self.cgroups.create(name, limits(size)).map_err(EngineError::Spawn)?;
        Ok(group.map(Arc::new))
    }
}

/// A running monitor. Dropping it kills the process.
pub(super) struct Monitor {
    pub process: Process,
    pub client: Client,
}

/// A monitor that has no machine yet, and both ends of the ways into its guest.
pub(super) struct Idle {
    pub monitor: Monitor,
    ways: Ways,
    their_agent: OwnedFd,
    their_net: OwnedFd,
}

/// The server's ends of the ways into a guest.
pub(super) struct Ways {
    /// The stream to its agent.
    pub agent: UnixStream,
    /// Frames of its network device.
    pub net: OwnedFd,
}

impl Ways {
    /// Must be called inside a Tokio runtime.
    pub fn new(agent: StdUnixStream, net: OwnedFd) -> Result<Self, EngineError> {
        Ok(Self { agent: into_tokio(agent)?, net })
    }
}

/// Jails and starts a monitor. `name` is that of its control group.
pub(super) async fn launch(host: &Host, name: &str, size: Size) -> Result<Idle, EngineError> {
    let (ours, theirs) = channels::open().map_err(EngineError::Spawn)?;
    let null = process::open_null()?;
    let group = host.group(name, size)?;
    let program = Program {
        root: host.runtime.root.clone(),
        init: c_string(KEEPER)?,
        args: vec![c_string("panda-vmm")?],
        env: Vec::new(),
        path: c_string(MONITOR)?,
        descriptors: vec![
            null.clone(),
            null,
            Arc::new(theirs.complaints),
            Arc::new(theirs.control),
        ],
        rlimits: process::rlimits(),
        confine: Confine::Programs,
        filter: host.filter.clone(),
        cgroup: group.clone(),
        lifeline: None,
    };
    let child = process::spawn(program).await?;
    // From here on dropping it kills the process.
    let process = Process::new(child, Complaints::collect(ours.complaints)?, group);
    let client = Client::new(ours.control).map_err(EngineError::Spawn)?;
    let ways = Ways::new(ours.agent, ours.net)?;
    let (their_agent, their_net) = (theirs.agent, theirs.net);
    Ok(Idle { monitor: Monitor { process, client }, ways, their_agent, their_net })
}

impl Idle {
    /// Has the monitor make its machine of the descriptors in `with`. The machine stands still.
    /// Comes with the ways into its guest.
    pub async fn start(
        self,
        host: &Host,
        size: Size,
        boot: Option<String>,
        mut with: Attached<'_>,
    ) -> Result<(Monitor, Ways), EngineError> {
        with.push((Role::Kvm, host.kvm.as_fd()));
        with.push((Role::Agent, self.their_agent.as_fd()));
        with.push((Role::Net, self.their_net.as_fd()));
        // Sizes have at most 8 vCPUs.
        let cpus = u8::try_from(size.cpu).unwrap_or(u8::MAX);
        let start = Request::Start(Start { cpus, memory_mb: size.memory_mb, boot });
        let started = self.monitor.client.done(start, with, START).await;
        match started {
            Ok(()) => Ok((self.monitor, self.ways)),
            Err(error) => Err(self.monitor.explain(error).await),
        }
    }
}

impl Monitor {
    /// Ends a process that failed. If it died, its complaints say more than the silence after it.
    pub async fn explain(&self, error: EngineError) -> EngineError {
        self.process.end().await;
        let said = self.process.complaints().last().await;
        match error {
            EngineError::Ended(why) if !said.is_empty() => {
                EngineError::Ended(format!("{why}. {said}"))
            }
            error => error,
        }
    }
}

/// Host memory that a machine may use beyond its guest's: the monitor's own code, heap and stacks
/// (some 8 MiB), KVM's structures, the page tables of a few dozen forks, and dirty page cache of
/// its private disk, which is charged until it is written out.
const OVERHEAD_BYTES: u64 = 96 << 20;

/// Page tables: the process's own and those by which the processor walks the guest's memory, eight
/// bytes a page each, both charged to the machine; and as much again for KVM's bookkeeping of
/// pages.
const TABLES_PER_BYTE: u64 = 4096 / (4 * 8);

/// How much of the host a machine may use.
///
/// Guest memory counts twice. A guest can make the process keep a private copy of every page, once.
/// What is charged besides:
///
/// * page cache of the bake, which every machine shares, to the one that touched it first. The
///   kernel takes it back when the limit is reached, so it needs no room of its own;
/// * pages that a fork still uses after its source has replaced them. They stay charged to the
///   source, which must not be killed for what its forks hold: this is the second time.
fn limits(size: Size) -> CgroupLimits {
    let memory = size.memory_bytes();
    process::of_group(2 * memory + memory / TABLES_PER_BYTE + OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_knows_the_address_of_the_monitors_network_device() {
        assert_eq!(pandastack_vmm::GUEST_MAC, pandastack_proto::network::GUEST_MAC);
    }

    #[test]
    fn limits_leave_room_for_every_page_and_its_tables() {
        for memory_mb in [128, 1024, 3072] {
            let size = Size::new(1, memory_mb, 2048).unwrap();
            let beyond = limits(size).memory_bytes - 2 * size.memory_bytes();
            let tables = size.memory_bytes() / 4096 * 32;
            assert_eq!(beyond, tables + OVERHEAD_BYTES);
        }
    }
}
