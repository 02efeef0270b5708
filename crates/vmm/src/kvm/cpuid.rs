//! What a vCPU says of itself: the host's CPUID as KVM supports it, less what a fork or a snapshot
//! could not carry over.
//!
//! Rule: a feature is offered only if all of its state is in the guest's memory, in its registers
//! or in MSRs that are saved. State elsewhere, in the host or out of reach, is state that a copy of
//! the machine would lack. So virtualisation, performance counters, enclaves, tracing and shadow
//! stacks are hidden, and of KVM's own features those stay that are named below.
//!
//! Topology: one socket, a core per vCPU, no threads; APIC ids count from 0.
//!
//! Leaves and bits: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux'
//! `Documentation/virt/kvm/x86/cpuid.rst` for the leaves from 0x4000_0000 on.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

/// Leaves that read as zero. KVM answers so for a leaf that is not there.
const HIDDEN: &[u32] = &[
    0xa,         // performance counters, which would have to be saved while they count
    0x12,        // SGX: an enclave's memory cannot be copied
    0x14,        // processor trace
    0x1b,        // memory encryption keys of the platform
    0x1c,        // last branch records
    0x23,        // performance counters, again
    0x8000_000a, // SVM
    0x8000_001b, // instruction based sampling
    0x8000_001f, // encrypted memory: a fork shares pages
    0x8000_0022, // performance counters of AMD
    0x8000_0026, // topology of the host
];

/// Leaf of the features of KVM.
const KVM_FEATURES: u32 = 0x4000_0001;
/// Leaves of hypervisors; only the first two of KVM are offered.
const HYPERVISOR: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;

/// Features of KVM that stay, by bit of EAX. All others, those of kernels to come as well, are
/// hidden. Of those that exist today:
/// * 0, the first clock, has MSRs of its own for the state of the clock that bit 3 offers;
/// * 4, 10, 14, asynchronous page faults: which faults are under way is known to the host alone,
///   and a task that waits for one would wait for ever in a copy;
/// * 7, unhalt: a kick between a guest's last look and its HLT is remembered in KVM only, and a
///   copy taken there would sleep for ever, with interrupts off. Spin locks then know that they
///   are in a guest and spin in a way that is right for one;
/// * 12, control of polling on the host, is of no use to a guest that does not own its host;
/// * 15, interrupts for more than 255 processors; 16, 17, encrypted guests.
const KVM_KEPT: u32 = 1 << 1 // no delays around port I/O
    | 1 << 3   // the clock: MSRs 0x4b564d00 and 0x4b564d01, and KVM_GET_CLOCK
    | 1 << 5   // steal time: MSR 0x4b564d03, the rest is in guest memory
    | 1 << 6   // short end of interrupt: MSR 0x4b564d04; KVM takes back what is pending at every exit
    | 1 << 9   // flush of remote TLBs, by a flag in the memory of steal time
    | 1 << 11  // interrupts to several processors by one call, without state
    | 1 << 13  // yield to another processor, without state
    | 1 << 24; // the clock is the same on all processors, without state

/// `xss` and subleaves of leaf 0xd: processor trace, both halves of CET, last branch records.
const XSTATE_HIDDEN: u32 = 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15;

/// CPUID of the vCPU with this index out of `cpus`, at most 255, of what
/// `KVM_GET_SUPPORTED_CPUID` says. `tsc_deadline`: KVM has `KVM_CAP_TSC_DEADLINE_TIMER`, which its
/// CPUID does not tell. x2APIC stays if KVM has it.
///
/// A guest may still try what it is not offered: `KVM_CAP_ENFORCE_PV_FEATURE_CPUID` makes KVM
/// refuse its own hidden features, `KVM_CAP_PMU_CAPABILITY` the counters of AMD.
pub fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    index: u8,
    cpus: u8,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let vcpu = Vcpu {
        index: index.into(),
        cpus: cpus.max(1).into(),
        tsc_deadline,
        amd: matches!(&vendor(supported), b"AuthenticAMD" | b"HygonGenuine"),
    };
    let mut entries: Vec<_> =
        supported.iter().copied().filter_map(|entry| vcpu.change(entry)).collect();
    let last = leaf(supported, 0).eax;
    for function in [0xb, 0x1f].into_iter().filter(|function| *function <= last) {
        entries.extend(vcpu.topology(function));
    }
    entries
}

/// One vCPU among others.
struct Vcpu {
    index: u32,
    cpus: u32,
    tsc_deadline: bool,
    amd: bool,
}

impl Vcpu {
    /// Bits of an APIC id that number cores.
    fn core_bits(&self) -> u32 {
        self.cpus.next_power_of_two().ilog2()
    }

    /// How many APIC ids those bits make.
    fn ids(&self) -> u32 {
        1 << self.core_bits()
    }

    /// What becomes of one entry, if it stays.
    fn change(&self, mut entry: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
        let kvm = (0x4000_0000..=KVM_FEATURES).contains(&entry.function);
        let own = matches!(entry.function, 0xb | 0x1f);
        let state = entry.function == 0xd && matches!(entry.index, 8 | 11 | 12 | 15);
        if HIDDEN.contains(&entry.function)
            || HYPERVISOR.contains(&entry.function) && !kvm
            || own
            || state
        {
            return None;
        }
        let several = self.cpus > 1;
        match (entry.function, entry.index) {
            (1, _) => {
                // Brand and CLFLUSH stay; how many ids the socket has; the APIC id.
                entry.ebx = (entry.ebx & 0xffff) | (self.ids() << 16) | (self.index << 24);
                // VMX, SMX, and the MSR of performance capabilities.
                entry.ecx &= !(1 << 5 | 1 << 6 | 1 << 15);
                set(&mut entry.ecx, 24, self.tsc_deadline);
                set(&mut entry.ecx, 31, true);
                set(&mut entry.edx, 28, several);
            }
            (4, _) if entry.eax & 0x1f != 0 => {
                let sharing = if level(entry) == 3 { self.ids() - 1 } else { 0 };
                entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | ((self.ids() - 1) << 26);
            }
            (7, 0) => {
                entry.ebx &= !(1 << 2 | 1 << 25); // SGX, processor trace
                entry.ecx &= !(1 << 7 | 1 << 30); // shadow stacks, SGX again
                entry.edx &= !(1 << 19 | 1 << 20); // branch records, branch tracking of CET
            }
            (0xd, 1) => entry.ecx &= !XSTATE_HIDDEN,
            (0x4000_0000, _) => entry.eax = KVM_FEATURES,
            (KVM_FEATURES, _) => {
                entry.eax &= KVM_KEPT;
                // The hint that a vCPU is never preempted is not true.
                entry.edx = 0;
            }
            (0x8000_0001, _) => {
                // SVM, instruction based sampling, performance counters of AMD.
                entry.ecx &= !(1 << 2 | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28);
                // Several cores without threads.
                set(&mut entry.ecx, 1, several && self.amd);
            }
            (0x8000_0008, _) if self.amd => {
                entry.ecx = (self.core_bits() << 12) | (self.cpus - 1);
            }
            (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let sharing = if level(entry) == 3 { self.cpus - 1 } else { 0 };
                entry.eax = (entry.eax & !(0xfff << 14)) | (sharing << 14);
            }
            (0x8000_001e, _) if self.amd => {
                // A core of one thread, in a socket of one node.
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (self.index, self.index, 0, 0);
            }
            _ => {}
        }
        Some(entry)
    }

    /// Levels of the extended topology: threads, cores, and the end.
    fn topology(&self, function: u32) -> [kvm_cpuid_entry2; 3] {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        [(0, 0, 1, THREADS), (1, self.core_bits(), self.cpus, CORES), (2, 0, 0, 0)].map(
            |(index, eax, ebx, kind)| kvm_cpuid_entry2 {
                function,
                index,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax,
                ebx,
                ecx: index | kind,
                edx: self.index,
                ..kvm_cpuid_entry2::default()
            },
        )
    }
}

/// Which level of cache an entry of leaf 4 or 0x8000_001d describes.
fn level(entry: kvm_cpuid_entry2) -> u32 {
    entry.eax >> 5 & 7
}

fn set(register: &mut u32, bit: u32, value: bool) {
    *register = (*register & !(1 << bit)) | (u32::from(value) << bit);
}

/// The first entry of a leaf, or zeros.
fn leaf(entries: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
    entries.iter().find(|entry| entry.function == function).copied().unwrap_or_default()
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> [u8; 12] {
    let first = leaf(entries, 0);
    let mut vendor = [0; 12];
    for (to, register) in vendor.chunks_mut(4).zip([first.ebx, first.edx, first.ecx]) {
        to.copy_from_slice(&register.to_le_bytes());
    }
    vendor
}

/// Leaves whose bits a program relies on for as long as it runs.
const FEATURES: &[u32] = &[
    1,
    7,
    0xd,
    0x19,
    0x1d,
    0x1e,
    0x24,
    KVM_FEATURES,
    0x8000_0001,
    0x8000_0007,
    0x8000_0008,
    0x8000_0021,
];

/// What a guest that once ran here takes for granted. A snapshot is restored only where it is
/// equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuIdentity {
    /// The vendor's twelve letters.
    pub vendor: [u8; 12],
    /// Family, the extended one included.
    pub family: u32,
    /// Model, the extended one included.
    pub model: u32,
    /// Stepping.
    pub stepping: u32,
    /// BLAKE3 of everything that a guest is offered.
    pub features: [u8; 32],
}

/// The identity of a host, of what `KVM_GET_SUPPORTED_CPUID` says there. What differs between the
/// host's own processors, such as the APIC id, is not part of it.
pub fn identity(supported: &[kvm_cpuid_entry2]) -> CpuIdentity {
    let version = leaf(supported, 1).eax;
    let (family, model) = (version >> 8 & 0xf, version >> 4 & 0xf);
    let extended = |value: u32| if matches!(family, 6 | 15) { value } else { 0 };
    CpuIdentity {
        vendor: vendor(supported),
        family: if family == 15 { family + (version >> 20 & 0xff) } else { family },
        model: model | extended(version >> 12 & 0xf0),
        stepping: version & 0xf,
        features: digest(for_vcpu(supported, 0, 1, true)),
    }
}

fn digest(mut entries: Vec<kvm_cpuid_entry2>) -> [u8; 32] {
    entries.retain(|entry| FEATURES.contains(&entry.function));
    entries.sort_unstable_by_key(|entry| (entry.function, entry.index));
    let mut hash = blake3::Hasher::new();
    for entry in entries {
        // The size of what is enabled just now is no feature.
        let dynamic = entry.function == 0xd && entry.index < 2;
        let ebx = if dynamic { 0 } else { entry.ebx };
        for word in [entry.function, entry.index, entry.eax, ebx, entry.ecx, entry.edx] {
            hash.update(&word.to_le_bytes());
        }
    }
    hash.finalize().into()
}

impl CpuIdentity {
    /// In words, for whoever wonders why a snapshot is refused.
    pub fn describe(&self) -> String {
        let [a, b, c, d, ..] = self.features;
        format!(
            "{} family {} model {} stepping {}, features {a:02x}{b:02x}{c:02x}{d:02x}",
            self.vendor.escape_ascii(),
            self.family,
            self.model,
            self.stepping,
        )
    }
}

#[cfg(test)]
mod tests;
