//! A machine's beginning: booted once, restored ever after.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::CpuId;

use super::{Answer, Monitor};
use crate::boot::{self, BootError};
use crate::control::{Failure, Received, Reply, Request, Role, Start};
use crate::devices::{self, Backends, Devices};
use crate::disk::Disk;
use crate::ioapic::Ioapic;
use crate::kvm::cpuid;
use crate::kvm::state::RestoreError;
use crate::kvm::{Host, KvmError, Vm, VmState, state};
use crate::legacy::{Ports, Serial};
use crate::machine::{Board, Machine, MachineError, Wiring};
use crate::memory::working_set::WorkingSet;
use crate::memory::{MapError, Mapping};
use crate::snapshot::{Saved, StateError};
use crate::{GuestMemory, layout};

/// Most vCPUs of a machine.
const MAX_CPUS: u8 = 8;

impl Monitor {
    /// Makes the machine. It stands still.
    pub(super) fn start(&mut self, start: &Start, mut with: Received<Request>) -> Answer {
        if self.machine.is_some() {
            return Err(Failure::Refused("there is a machine already".into()));
        }
        let most = layout::RAM_END_MAX >> 20;
        let memory_fits = (1..=most).contains(&u64::from(start.memory_mb));
        if !(1..=MAX_CPUS).contains(&start.cpus) || !memory_fits {
            return Err(Failure::Refused("no machine is of such a size".into()));
        }
        let host = Host::ask(take(&mut with, Role::Kvm)?).map_err(kvm_failure)?;
        let machine = match &start.boot {
            Some(command_line) => booted(host, start, command_line, &mut with)?,
            None => restored(host, start, &mut with)?,
        };
        self.machine = Some(machine);
        Ok((Reply::Done, None))
    }
}

/// A machine whose first instruction is the kernel's.
fn booted(
    host: Host,
    start: &Start,
    command_line: &str,
    with: &mut Received<Request>,
) -> Result<Machine, Failure> {
    let bytes = u64::from(start.memory_mb) << 20;
    let mapping = Mapping::anonymous(bytes).map_err(map_failure)?;
    let memory = mapping.guest();
    let disk = Disk::plain(take(with, Role::Disk)?.into(), false).map_err(disk_failure)?;
    let board = board(Ioapic::new(), Ports::default(), disk, memory.clone(), with)?;
    let mut kernel = File::from(take(with, Role::Kernel)?);
    let mut initrd = File::from(take(with, Role::Initrd)?);
    let described = boot::Machine {
        command_line,
        cpus: start.cpus,
        devices: devices::COUNT,
        serial: command_line.contains("console=ttyS0"),
    };
    let entry = boot::load(&memory, &mut kernel, &mut initrd, &described).map_err(boot_failure)?;
    let lists: Vec<CpuId> = (0..start.cpus)
        .map(|index| cpuid::for_vcpu(&host.cpuid, index, start.cpus, host.tsc_deadline))
        .map(|list: Vec<_>| CpuId::from_entries(&list).expect("no more than KVM supports"))
        .collect();
    let state = boot_state(&host, &memory, &lists, entry).map_err(kvm_failure)?;
    Ok(Machine::new(host, mapping, memory, board, state))
}

/// The state of processors that are about to enter a kernel: a virtual machine is made for it,
/// once, as for any other state.
fn boot_state(
    host: &Host,
    memory: &GuestMemory,
    lists: &[CpuId],
    entry: boot::Entry,
) -> Result<VmState, KvmError> {
    let (vm, vcpus) = Vm::new(host, memory, lists)?;
    for vcpu in &vcpus {
        // The others wait for the kernel to start them; all of them need MSRs and FPU.
        vcpu.set_boot_state()?;
    }
    vcpus[0].set_boot_registers(entry)?;
    state::save(host, &vm, &vcpus)
}

/// A machine that goes on where another one was saved.
fn restored(host: Host, start: &Start, with: &mut Received<Request>) -> Result<Machine, Failure> {
    let saved = Saved::read(&take(with, Role::State)?.into()).map_err(state_failure)?;
    if saved.memory_mb != start.memory_mb || saved.vm.cpus.len() != usize::from(start.cpus) {
        return Err(damaged("state", "it is of a machine of another size"));
    }
    let ours = cpuid::identity(&host.cpuid);
    if saved.processor != ours {
        let (theirs, ours) = (saved.processor.describe(), ours.describe());
        return Err(Failure::Foreign(format!("{theirs}, and this is {ours}")));
    }
    let base = File::from(take(with, Role::Memory)?);
    let diff = with.take(Role::Diff).map(File::from);
    let bytes = u64::from(start.memory_mb) << 20;
    let (mapping, diff) = Mapping::of_files(&base, diff.as_ref(), bytes).map_err(map_failure)?;
    let memory = mapping.guest();
    let layers = with.take_all(Role::Layer).into_iter().map(File::from).collect();
    let below = take(with, Role::Disk)?.into();
    let disk = Disk::layered(below, layers, take(with, Role::Top)?.into()).map_err(disk_failure)?;
    let ioapic = Ioapic::restore(saved.ioapic).map_err(|e| damaged("state", &e.to_string()))?;
    let ports = Ports { serial: Serial::restore(saved.serial) };
    let board = board(ioapic, ports, disk, memory.clone(), with)?;
    board.devices.restore(saved.devices).map_err(|e| damaged("state", &e.to_string()))?;
    let working_set =
        with.take(Role::WorkingSet).map(|file| WorkingSet::read(&file.into())).unwrap_or_default();
    working_set.fetch(&mapping);
    let mut machine = Machine::new(host, mapping, memory, board, saved.vm);
    machine.diff = diff;
    machine.working_set = working_set;
    machine.is_copy = true;
    Ok(machine)
}

fn board(
    ioapic: Ioapic,
    ports: Ports,
    disk: Disk,
    memory: GuestMemory,
    with: &mut Received<Request>,
) -> Result<Arc<Board>, Failure> {
    let wiring = Arc::new(Wiring::new(ioapic));
    let backends = Backends {
        root: Disk::plain(take(with, Role::Root)?.into(), true).map_err(disk_failure)?,
        disk,
        agent: take(with, Role::Agent)?,
        net: with.take(Role::Net),
    };
    let devices = Devices::new(backends, memory, wiring.clone());
    let board = devices.and_then(|devices| Board::new(wiring, ports, devices));
    board.map(Arc::new).map_err(|why| kernel("make an eventfd", &why))
}

/// Runs a guest of three instructions in long mode, which a host must be able to run.
pub(super) fn prove(mut with: Received<Request>) -> Answer {
    let host = Host::ask(take(&mut with, Role::Kvm)?).map_err(kvm_failure)?;
    crate::kvm::proof::prove(&host).map_err(|why| Failure::Refused(why.to_string()))?;
    Ok((Reply::Done, None))
}

/// Takes the descriptor that a request must come with.
pub(super) fn take(with: &mut Received<Request>, role: Role) -> Result<OwnedFd, Failure> {
    with.take(role).ok_or_else(|| Failure::Refused(format!("it lacks a descriptor: {role:?}")))
}

pub(super) fn damaged(file: &str, why: &str) -> Failure {
    Failure::Damaged { file: file.into(), why: why.into() }
}

pub(super) fn kernel(what: &str, why: &std::io::Error) -> Failure {
    Failure::Kernel { what: what.into(), why: why.to_string() }
}

pub(super) fn kvm_failure(error: KvmError) -> Failure {
    kernel(&error.what, &error.source)
}

pub(super) fn machine_failure(error: MachineError) -> Failure {
    match error {
        MachineError::Kvm(error) | MachineError::Restore(RestoreError::Kvm(error)) => {
            kvm_failure(error)
        }
        MachineError::Restore(RestoreError::Frequency { .. }) => {
            Failure::Foreign(error.to_string())
        }
        MachineError::Restore(other) => damaged("state", &other.to_string()),
        MachineError::Thread(why) => kernel("start a thread", &why),
        MachineError::Lost => Failure::Refused(error.to_string()),
    }
}

fn map_failure(error: MapError) -> Failure {
    match error {
        MapError::Map(why) => kernel("map guest memory", &why),
        MapError::Length { .. } => damaged("memory", &error.to_string()),
        MapError::Diff(why) => damaged("memory diff", &why.to_string()),
    }
}

fn state_failure(error: StateError) -> Failure {
    damaged("state", &error.to_string())
}

fn disk_failure(error: crate::disk::DiskError) -> Failure {
    damaged("disk", &error.to_string())
}

fn boot_failure(error: BootError) -> Failure {
    damaged("kernel", &error.to_string())
}
