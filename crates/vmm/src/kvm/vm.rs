//! One virtual machine with its memory and vCPUs, and what its host can do.

use std::os::fd::{AsRawFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::msrs;
use super::vcpu::Vcpu;
use super::{KvmError, refused};
use crate::{GuestMemory, layout};

/// Three pages of the guest's address space that Intel processors need for real mode; away from
/// everything in [`layout`], where every monitor puts them.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// Attempts to make a virtual machine: the call gives up when a signal arrives meanwhile.
const ATTEMPTS: u32 = 5;

/// What KVM offers on this host. Asked once; a fork inherits the answers.
pub struct Host {
    kvm: Kvm,
    /// CPUID as KVM supports it.
    pub cpuid: Vec<kvm_bindings::kvm_cpuid_entry2>,
    /// MSRs that hold state of a guest and that KVM knows here.
    pub(super) msrs: Vec<u32>,
    /// Bytes of a vCPU's extended state.
    pub(super) xsave_bytes: usize,
    /// Whether a guest may have a TSC of another frequency than the host's.
    pub(super) scales_tsc: bool,
    /// Whether the local APIC has a timer that is set to a value of the TSC.
    pub tsc_deadline: bool,
}

impl Host {
    /// Asks KVM behind this descriptor.
    pub fn ask(kvm: OwnedFd) -> Result<Self, KvmError> {
        use std::os::fd::{FromRawFd, IntoRawFd};
        // SAFETY: the descriptor is open and becomes the object's own.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != 12 {
            let source = std::io::Error::other(format!("it has version {version} of its API"));
            return Err(KvmError { what: "act as KVM".into(), source });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("tell the supported CPUID"))?;
        let known = kvm.get_msr_index_list().map_err(refused("tell its MSRs"))?;
        let xsave = kvm.check_extension_int(Cap::Xsave2);
        Ok(Self {
            cpuid: cpuid.as_slice().to_vec(),
            msrs: msrs::with_state(known.as_slice()),
            // The structure of KVM_GET_XSAVE, where KVM_GET_XSAVE2 is not known.
            xsave_bytes: usize::try_from(xsave).unwrap_or(0).max(4096),
            scales_tsc: kvm.check_extension(Cap::TscControl),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            kvm,
        })
    }

    /// The descriptor of `/dev/kvm`.
    pub fn descriptor(&self) -> i32 {
        self.kvm.as_raw_fd()
    }
}

/// A virtual machine without its vCPUs, which run in threads of their own.
pub struct Vm {
    fd: VmFd,
}

impl Vm {
    /// Makes a machine over `memory` with one vCPU per element of `cpuid`.
    ///
    /// Memory comes before the interrupt controller: since Linux 6.18 the other order makes the
    /// first memslot wait some 7 ms for a grace period. Only the local APICs are in the kernel
    /// (split irqchip), there is no PIT, and nothing is registered on its buses, which keeps the
    /// end of the machine short as well.
    pub fn new(
        host: &Host,
        memory: &GuestMemory,
        cpuid: &[CpuId],
    ) -> Result<(Self, Vec<Vcpu>), KvmError> {
        let fd = create(&host.kvm)?;
        // Intel processors swap a memslot for this one, so it comes before the irqchip, too.
        fd.set_tss_address(TSS_ADDRESS).map_err(refused("place the TSS"))?;
        for (slot, region) in memory.iter().enumerate() {
            let address = memory
                .get_host_address(region.start_addr())
                .expect("a region has an address where it begins");
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: address as u64,
            };
            // SAFETY: the memory stays mapped as long as the process uses the machine.
            unsafe { fd.set_user_memory_region(slot) }.map_err(refused("map memory"))?;
        }
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = layout::IOAPIC_PINS.into();
        fd.enable_cap(&split).map_err(refused("split the interrupt controller"))?;
        let mut vcpus = Vec::with_capacity(cpuid.len());
        for (index, cpuid) in cpuid.iter().enumerate() {
            // After the irqchip: a vCPU is made with its local APIC.
            let vcpu = fd.create_vcpu(index as u64).map_err(refused("make a vCPU"))?;
            // Before everything else that is set: what is valid depends on it.
            vcpu.set_cpuid2(cpuid).map_err(refused("set CPUID"))?;
            vcpus.push(Vcpu::new(vcpu, index as u8));
        }
        Ok((Self { fd }, vcpus))
    }

    /// Sends a message to the local APICs.
    pub fn signal(&self, address: u64, data: u32) -> Result<(), KvmError> {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        // 0: no local APIC wanted it, as on a bus.
        self.fd.signal_msi(message).map(drop).map_err(refused("deliver an interrupt"))
    }

    pub(super) fn fd(&self) -> &VmFd {
        &self.fd
    }
}

fn create(kvm: &Kvm) -> Result<VmFd, KvmError> {
    let mut attempt = 1;
    loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR && attempt < ATTEMPTS => attempt += 1,
            created => return created.map_err(refused("make a virtual machine")),
        }
    }
}
