//! CPUID of made-up processors of both vendors, and of the host.

use kvm_bindings::CpuId;
use kvm_ioctls::Kvm;
use proptest::prelude::*;

use super::*;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
}

/// Bits of every register set, on a processor of AMD: what must go is seen to go.
fn amd() -> Vec<kvm_cpuid_entry2> {
    const ALL: [u32; 4] = [u32::MAX; 4];
    vec![
        entry(0, 0, [0x1f, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x00a1_0f11, 0x0702_0800, u32::MAX, u32::MAX]),
        entry(7, 0, ALL),
        entry(0xa, 0, ALL),
        entry(0xb, 0, ALL),
        entry(0xb, 1, ALL),
        entry(0xd, 0, [0xe7, 0x980, 0x980, 0]),
        entry(0xd, 1, ALL),
        entry(0xd, 11, ALL),
        entry(0x1f, 0, ALL),
        entry(0x8000_0001, 0, ALL),
        entry(0x8000_0008, 0, ALL),
        entry(0x8000_000a, 0, ALL),
        entry(0x8000_001d, 2, [0x01c0_0143, 0, 0, 0]),
        entry(0x8000_001d, 3, [0x03c0_4163, 0, 0, 0]),
        entry(0x8000_001e, 0, [0; 4]),
        entry(0x8000_001f, 0, ALL),
        entry(0x4000_0000, 0, [0x4000_0005, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(KVM_FEATURES, 0, ALL),
        entry(0x4000_0003, 0, ALL),
    ]
}

fn intel() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0xb, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
        entry(1, 0, [0x0005_0654, 0x0010_0800, 0, 0]),
        entry(4, 0, [0x1c00_4121, 0, 0, 0]),
        entry(4, 3, [0x1c03_c163, 0, 0, 0]),
        entry(4, 4, [0; 4]),
        entry(0x8000_0001, 0, [0; 4]),
        entry(0x8000_0008, 0, [0x302e, 0, 0, 0]),
    ]
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
    let mut found = entries.iter().filter(|e| (e.function, e.index) == (function, index));
    let only = found.next().map(|e| [e.eax, e.ebx, e.ecx, e.edx]);
    assert!(found.next().is_none(), "{function:#x}.{index} is there twice");
    only
}

#[test]
fn features_with_state_out_of_reach_are_hidden() {
    let entries = for_vcpu(&amd(), 0, 1, true);
    let gone = |register: u32, bits: &[u32]| bits.iter().all(|bit| register >> bit & 1 == 0);
    let [_, _, ecx, _] = find(&entries, 1, 0).unwrap();
    assert!(gone(ecx, &[5, 6, 15]));
    let [_, ebx, ecx, edx] = find(&entries, 7, 0).unwrap();
    assert!(gone(ebx, &[2, 25]) && gone(ecx, &[7, 30]) && gone(edx, &[19, 20]));
    assert!(gone(find(&entries, 0x8000_0001, 0).unwrap()[2], &[2, 10, 23, 24, 28]));
    assert!(gone(find(&entries, 0xd, 1).unwrap()[2], &[8, 11, 12, 15]));
    for (function, index) in [(0xa, 0), (0xd, 11), (0x8000_000a, 0), (0x8000_001f, 0)] {
        assert_eq!(find(&entries, function, index), None);
    }
    assert_eq!(find(&entries, 0x4000_0000, 0).unwrap()[0], KVM_FEATURES);
    assert_eq!(find(&entries, KVM_FEATURES, 0), Some([0x0100_2a6a, u32::MAX, u32::MAX, 0]));
    assert_eq!(find(&entries, 0x4000_0003, 0), None);
}

#[test]
fn the_deadline_timer_is_what_kvm_says_and_x2apic_stays() {
    for deadline in [false, true] {
        for supported in [amd(), intel()] {
            let x2apic = leaf(&supported, 1).ecx >> 21 & 1;
            let [_, _, ecx, _] = find(&for_vcpu(&supported, 0, 1, deadline), 1, 0).unwrap();
            assert_eq!((ecx >> 24 & 1 == 1, ecx >> 31, ecx >> 21 & 1), (deadline, 1, x2apic));
        }
    }
}

#[test]
fn cores_of_amd_are_counted_everywhere() {
    let entries = for_vcpu(&amd(), 2, 6, true);
    let [_, ebx, _, edx] = find(&entries, 1, 0).unwrap();
    assert_eq!((ebx, edx >> 28 & 1), (0x0208_0800, 1));
    for function in [0xb, 0x1f] {
        assert_eq!(find(&entries, function, 0), Some([0, 1, 0x100, 2]));
        assert_eq!(find(&entries, function, 1), Some([3, 6, 0x201, 2]));
        assert_eq!(find(&entries, function, 2), Some([0, 0, 2, 2]));
    }
    assert_eq!(find(&entries, 0x8000_0001, 0).unwrap()[2] >> 1 & 1, 1);
    assert_eq!(find(&entries, 0x8000_0008, 0).unwrap()[2], 0x3005);
    assert_eq!(find(&entries, 0x8000_001d, 2).unwrap()[0], 0x143);
    assert_eq!(find(&entries, 0x8000_001d, 3).unwrap()[0], 0x163 | 5 << 14);
    assert_eq!(find(&entries, 0x8000_001e, 0), Some([2, 2, 0, 0]));
}

#[test]
fn cores_of_intel_are_counted_everywhere() {
    let entries = for_vcpu(&intel(), 1, 3, true);
    assert_eq!(find(&entries, 1, 0).unwrap()[1], 0x0104_0800);
    assert_eq!(find(&entries, 4, 0).unwrap()[0], 0x121 | 3 << 26);
    assert_eq!(find(&entries, 4, 3).unwrap()[0], 0x163 | 3 << 14 | 3 << 26);
    assert_eq!(find(&entries, 4, 4), Some([0; 4]));
    assert_eq!(find(&entries, 0xb, 1), Some([2, 3, 0x201, 1]));
    assert_eq!(find(&entries, 0x1f, 0), None, "not within its leaves");
    assert_eq!(find(&entries, 0x8000_0001, 0).unwrap()[2], 0);
    assert_eq!(find(&entries, 0x8000_0008, 0).unwrap()[2], 0);
}

#[test]
fn a_single_vcpu_has_no_company() {
    let entries = for_vcpu(&amd(), 0, 1, true);
    let [_, ebx, _, edx] = find(&entries, 1, 0).unwrap();
    assert_eq!((ebx, edx >> 28 & 1), (0x0001_0800, 0));
    assert_eq!(find(&entries, 0xb, 1), Some([0, 1, 0x201, 0]));
    assert_eq!(find(&entries, 0x8000_0001, 0).unwrap()[2] >> 1 & 1, 0);
}

#[test]
fn an_identity_is_that_of_the_model_and_its_features() {
    let host = identity(&amd());
    assert_eq!(
        (&host.vendor, host.family, host.model, host.stepping),
        (b"AuthenticAMD", 25, 17, 1)
    );
    assert!(host.describe().starts_with("AuthenticAMD family 25 model 17 stepping 1, features "));
    let skylake = identity(&intel());
    assert_eq!((skylake.family, skylake.model, skylake.stepping), (6, 0x55, 4));

    let mut elsewhere = amd();
    elsewhere[1].ebx = 0x0502_0800; // on another of the host's processors
    elsewhere[4].edx = 5;
    elsewhere.reverse();
    assert_eq!(identity(&elsewhere), host);

    let mut other = amd();
    other[2].ebx &= !(1 << 5); // no AVX2
    assert_ne!(identity(&other), host);
}

proptest! {
    /// Whatever KVM says: nothing appears twice that was there once, and to filter what was
    /// filtered changes nothing.
    #[test]
    fn filtering_is_final(
        leaves in prop::collection::btree_map(
            (prop_oneof![0u32..0x26, 0x4000_0000u32..0x4000_0012, 0x8000_0000u32..0x8000_0028], 0u32..3),
            any::<[u32; 4]>(),
            0..60,
        ),
        index in 0u8..8,
        cpus in 1u8..=8,
        deadline in any::<bool>(),
    ) {
        let supported: Vec<_> =
            leaves.iter().map(|((function, index), registers)| entry(*function, *index, *registers)).collect();
        let once = for_vcpu(&supported, index, cpus, deadline);
        for entry in &once {
            find(&once, entry.function, entry.index);
        }
        let mut twice = for_vcpu(&once, index, cpus, deadline);
        let key = |entry: &kvm_cpuid_entry2| (entry.function, entry.index);
        let mut once = once;
        once.sort_by_key(key);
        twice.sort_by_key(key);
        prop_assert_eq!(once, twice);
    }
}

#[test]
fn the_hosts_kvm_takes_it() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: no KVM");
        return;
    };
    let supported = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    let vm = kvm.create_vm().unwrap();
    for index in 0..4 {
        let vcpu = vm.create_vcpu(index).unwrap();
        let entries = for_vcpu(supported.as_slice(), index as u8, 4, true);
        vcpu.set_cpuid2(&CpuId::from_entries(&entries).unwrap()).unwrap();
        let back = vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        assert_eq!(back.as_slice().len(), entries.len());
    }
    println!("{}", identity(supported.as_slice()).describe());
}
