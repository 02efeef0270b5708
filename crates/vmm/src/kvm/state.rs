//! The state of vCPUs and machine, complete and in order.
//!
//! The list is that of the kernel's `Documentation/virt/kvm/api.rst`; the order is what its code
//! makes of it. Each step below says why it stands where it stands, if that matters.
//!
//! A state read from disk is hostile input. KVM checks what it is given; nothing here is used for
//! anything else, and a register that KVM refuses makes the whole restore fail.

use kvm_bindings::{
    CpuId, Msrs, Xsave, kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave2,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msrs::{self, TSC, TSC_DEADLINE};
use super::vcpu::Vcpu;
use super::vm::{Host, Vm};
use super::{KvmError, refused};

/// `KVM_MAX_MSR_ENTRIES`: most that one call takes.
const MSRS_PER_CALL: usize = 256;

/// A TSC whose frequency differs by less than this needs no scaling: the tolerance that KVM has
/// itself (`tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// One vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CpuState {
    /// What CPUID says.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// `struct kvm_xsave`, longer where the processor has more.
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Index and value.
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

/// The machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    /// By index.
    pub cpus: Vec<CpuState>,
    clock: kvm_clock_data,
}

/// Why a state was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is no state of a machine.
    #[error("the state makes no sense: {0}")]
    Senseless(&'static str),
    /// Its time stamp counter has another frequency, and this processor cannot scale.
    #[error("its time stamp counter runs at {theirs} kHz, this one at {ours} kHz")]
    Frequency {
        /// Of the state.
        theirs: u32,
        /// Of this host.
        ours: u32,
    },
    /// KVM refused a register.
    #[error("the value of MSR {0:#x} was refused")]
    Msr(u32),
    /// KVM refused something else.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Reads the state of a machine whose vCPUs stand still, with no input or output pending.
pub fn save(host: &Host, vm: &Vm, vcpus: &[Vcpu]) -> Result<VmState, KvmError> {
    let cpus = vcpus.iter().map(|vcpu| save_cpu(host, vcpu.fd())).collect::<Result<_, _>>()?;
    let clock = vm.fd().get_clock().map_err(refused("read the clock"))?;
    Ok(VmState { cpus, clock })
}

/// Gives a new machine this state, all of it but what counts time.
pub fn restore(host: &Host, vcpus: &[Vcpu], state: &VmState) -> Result<(), RestoreError> {
    if vcpus.len() != state.cpus.len() {
        return Err(RestoreError::Senseless("another number of vCPUs"));
    }
    // All of them before any other state: the frequency is what counters are set in.
    for (vcpu, state) in vcpus.iter().zip(&state.cpus) {
        restore_frequency(host, vcpu.fd(), state.tsc_khz)?;
    }
    for (vcpu, state) in vcpus.iter().zip(&state.cpus) {
        restore_cpu(host, vcpu.fd(), state)?;
    }
    Ok(())
}

/// Gives a machine that has its state its time as well, from which moment on it passes.
pub fn start_time(vm: &Vm, vcpus: &[Vcpu], state: &VmState) -> Result<(), RestoreError> {
    for (vcpu, state) in vcpus.iter().zip(&state.cpus) {
        // The deadline is relative to the counter, or the timer fires at once or never.
        for counted in [TSC, TSC_DEADLINE] {
            let register = state.msrs.iter().copied().filter(|(index, _)| *index == counted);
            set_msrs(vcpu.fd(), &register.collect::<Vec<_>>())?;
        }
        // Tells the guest's watchdogs that it stood still. Refused by guests without the clock.
        match vcpu.fd().kvmclock_ctrl() {
            Err(e) if e.errno() != libc::EINVAL => {
                return Err(refused("announce the pause")(e).into());
            }
            _ => {}
        }
    }
    // Without flags: time goes on where it stood, for this guest has not lived meanwhile.
    let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
    vm.fd().set_clock(&clock).map_err(refused("set the clock"))?;
    Ok(())
}

fn save_cpu(host: &Host, vcpu: &VcpuFd) -> Result<CpuState, KvmError> {
    // First: it makes pending events of the local APIC happen, which may change the registers.
    let mp_state = vcpu.get_mp_state().map_err(refused("read the vCPU's state"))?;
    // And this, read again below: an exception that is due may have a part that belongs into CR2 or
    // DR6, where KVM puts it when it is asked for the events.
    let events = || vcpu.get_vcpu_events().map_err(refused("read pending events"));
    events()?;
    let regs = vcpu.get_regs().map_err(refused("read registers"))?;
    let sregs = vcpu.get_sregs().map_err(refused("read special registers"))?;
    let xsave = get_xsave(host, vcpu)?;
    let xcrs = vcpu.get_xcrs().map_err(refused("read extended control registers"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(refused("read debug registers"))?;
    let lapic = vcpu.get_lapic().map_err(refused("read the local APIC"))?;
    let tsc_khz = vcpu.get_tsc_khz().map_err(refused("tell the frequency of the TSC"))?;
    let cpuid = vcpu
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("read CPUID"))?
        .as_slice()
        .to_vec();
    let msrs = get_msrs(host, vcpu)?;
    // Last: the steps before may have made some of them happen.
    let events = events()?;
    Ok(CpuState {
        cpuid,
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        events,
        tsc_khz,
    })
}

/// CPUID was set when the vCPU was made.
fn restore_cpu(host: &Host, vcpu: &VcpuFd, state: &CpuState) -> Result<(), RestoreError> {
    vcpu.set_mp_state(state.mp_state).map_err(refused("set the vCPU's state"))?;
    // Before the pending events, which this clears.
    vcpu.set_regs(&state.regs).map_err(refused("set registers"))?;
    // Before the local APIC, whose base and mode it has, and before the extended state, which
    // CR4 has to allow.
    vcpu.set_sregs(&state.sregs).map_err(refused("set special registers"))?;
    set_xsave(host, vcpu, &state.xsave)?;
    vcpu.set_xcrs(&state.xcrs).map_err(refused("set extended control registers"))?;
    vcpu.set_debug_regs(&state.debug_regs).map_err(refused("set debug registers"))?;
    // Before the MSRs: a deadline is only taken by a timer that is in the mode for it.
    vcpu.set_lapic(&state.lapic).map_err(refused("set the local APIC"))?;
    let timeless = |(index, _): &(u32, u64)| ![TSC, TSC_DEADLINE].contains(index);
    set_msrs(vcpu, &state.msrs.iter().copied().filter(timeless).collect::<Vec<_>>())?;
    Ok(vcpu.set_vcpu_events(&state.events).map_err(refused("set pending events"))?)
}

fn restore_frequency(host: &Host, vcpu: &VcpuFd, theirs: u32) -> Result<(), RestoreError> {
    let ours = vcpu.get_tsc_khz().map_err(refused("tell the frequency of the TSC"))?;
    let apart = u64::from(ours.abs_diff(theirs)) * 1_000_000;
    if apart <= u64::from(ours) * TSC_TOLERANCE_PPM {
        return Ok(());
    }
    if !host.scales_tsc {
        return Err(RestoreError::Frequency { theirs, ours });
    }
    Ok(vcpu.set_tsc_khz(theirs).map_err(refused("scale the TSC"))?)
}

fn get_xsave(host: &Host, vcpu: &VcpuFd) -> Result<Vec<u32>, KvmError> {
    let mut xsave = empty_xsave(host)?;
    // SAFETY: it has room for as much as KVM said there is.
    unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(refused("read the extended state"))?;
    let mut words = xsave.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(xsave.as_slice());
    Ok(words)
}

fn set_xsave(host: &Host, vcpu: &VcpuFd, words: &[u32]) -> Result<(), RestoreError> {
    let mut xsave = empty_xsave(host)?;
    let head = xsave.as_fam_struct_ref().xsave.region.len();
    if words.len() != head + xsave.as_slice().len() {
        return Err(RestoreError::Senseless("an extended state of another size"));
    }
    xsave.as_mut_slice().copy_from_slice(&words[head..]);
    // SAFETY: the length of the flexible part does not change.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region.copy_from_slice(&words[..head]);
    // SAFETY: it is as long as KVM said.
    Ok(unsafe { vcpu.set_xsave2(&xsave) }.map_err(refused("set the extended state"))?)
}

fn empty_xsave(host: &Host) -> Result<Xsave, KvmError> {
    let more = host.xsave_bytes.saturating_sub(4096).div_ceil(size_of::<u32>());
    let failed = |_| KvmError {
        what: "save its extended state".into(),
        source: std::io::Error::other("it is longer than anybody expects"),
    };
    Xsave::new(more).map_err(failed)
}

/// The registers that can be read: which of those that KVM lists a guest has depends on its
/// CPUID.
fn get_msrs(host: &Host, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut found = Vec::with_capacity(host.msrs.len());
    let mut rest: &[u32] = &host.msrs;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(MSRS_PER_CALL));
        let mut list = entries(now.iter().map(|&index| (index, 0)));
        // It stops at the first that this guest does not have.
        let count = vcpu.get_msrs(&mut list).map_err(refused("read MSRs"))?;
        found.extend(list.as_slice()[..count].iter().map(|entry| (entry.index, entry.data)));
        rest = if count < now.len() { &rest[count + 1..] } else { later };
    }
    // A timer that fired a moment ago and whose interrupt is still on its way has no deadline
    // any more; fire it again rather than never.
    let tsc = found.iter().find(|(index, _)| *index == TSC).map(|(_, value)| *value);
    for (index, value) in &mut found {
        if let (TSC_DEADLINE, 0, Some(now)) = (*index, *value, tsc) {
            *value = now;
        }
    }
    Ok(found)
}

fn set_msrs(vcpu: &VcpuFd, saved: &[(u32, u64)]) -> Result<(), RestoreError> {
    if let Some((index, _)) = saved.iter().find(|(index, _)| !msrs::is_state(*index)) {
        return Err(RestoreError::Msr(*index));
    }
    for chunk in saved.chunks(MSRS_PER_CALL) {
        let list = entries(chunk.iter().copied());
        // It stops at the first that it refuses, without an error.
        let count = vcpu.set_msrs(&list).map_err(refused("set MSRs"))?;
        if let Some((index, _)) = chunk.get(count) {
            return Err(RestoreError::Msr(*index));
        }
    }
    Ok(())
}

fn entries(registers: impl Iterator<Item = (u32, u64)>) -> Msrs {
    let list: Vec<kvm_msr_entry> = registers
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect();
    Msrs::from_entries(&list).expect("no longer than one call takes")
}

impl VmState {
    /// CPUID of each vCPU, as KVM takes it.
    pub fn cpuid(&self) -> Result<Vec<CpuId>, RestoreError> {
        let list = |cpu: &CpuState| CpuId::from_entries(&cpu.cpuid);
        let lists = self.cpus.iter().map(list).collect::<Result<_, _>>();
        lists.map_err(|_| RestoreError::Senseless("more CPUID than KVM takes"))
    }
}

/// What of [`kvm_xsave2`] has a fixed size is what `KVM_GET_XSAVE` gives.
const _: () = assert!(size_of::<kvm_xsave2>() >= 4096);

/// Sets all of these registers, or says which was refused.
pub(super) fn set_boot_msrs(vcpu: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), KvmError> {
    let list = entries(msrs.iter().copied());
    let count = vcpu.set_msrs(&list).map_err(refused("set MSRs"))?;
    match msrs.get(count) {
        None => Ok(()),
        Some((index, _)) => Err(KvmError {
            what: format!("set MSR {index:#x}"),
            source: std::io::Error::from_raw_os_error(libc::EINVAL),
        }),
    }
}
