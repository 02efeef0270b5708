//! The machine described in ACPI 6.5, hardware-reduced: no legacy timer, no PIC, no fixed events.
//!
//! ```text
//!   RSDP ─▶ XSDT ┬▶ FADT ─▶ DSDT   \_SB_.VR00…  virtio-mmio windows     (LNRO0005)
//!                └▶ MADT           \_SB_.VGEN   generation id           (VM_Gen_Counter)
//!                                  \_SB_.GED_   its interrupt           (ACPI0013)
//!                                  \_SB_.COM1   serial port, on demand  (PNP0501)
//!                                  \_S5_        soft off
//! ```
//!
//! The tables are made of the machine's shape alone, so equal machines have equal bytes. They are
//! read at boot and nothing here is dynamic: what changes later is in devices and in the page of
//! the generation id.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::Machine;
use crate::layout;

/// Who made the tables, of which kind, in which revision.
const OEM: [u8; 6] = *b"PANDA ";
const OEM_TABLE: [u8; 8] = *b"PANDAVMM";
const OEM_REVISION: u32 = 1;

/// Length of a table's header, and the DSDT's revision: 2 is the one with 64-bit integers.
const HEADER: u32 = 36;
const DSDT_REVISION: u8 = 2;
/// FADT, `IAPC_BOOT_ARCH`: neither VGA nor CMOS clock. That the bits for legacy devices and the
/// keyboard controller are clear says that nobody has to look for them either.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// The notification that the generation id changed (Microsoft, "Virtual Machine Generation ID").
const GENERATION_CHANGED: u8 = 0x80;

/// Every table with its address, none over another. The root pointer is at
/// [`layout::ACPI_RSDP`].
pub(super) fn tables(machine: &Machine<'_>) -> Vec<(u64, Vec<u8>)> {
    let mut next = layout::ACPI_TABLES;
    let mut tables = Vec::new();
    let mut place = |table: Vec<u8>| {
        let address = next;
        next = (next + table.len() as u64).next_multiple_of(8);
        tables.push((address, table));
        address
    };
    let dsdt = place(dsdt(machine));
    let fadt = place(fadt(dsdt));
    let madt = place(madt(machine.cpus));
    let xsdt = place(xsdt(&[fadt, madt]));
    tables.push((layout::ACPI_RSDP, bytes(&Rsdp::new(OEM, xsdt))));
    tables
}

fn xsdt(entries: &[u64]) -> Vec<u8> {
    let mut table = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    entries.iter().for_each(|entry| table.add_entry(*entry));
    bytes(&table)
}

/// How to sleep and to reset, and what there is not.
fn fadt(dsdt: u64) -> Vec<u8> {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // Buttons, if there ever are any, are devices of the DSDT.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    table.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    table.reset_reg = port(layout::I8042_COMMAND);
    table.reset_value = layout::RESET_COMMAND;
    table.sleep_control_reg = port(layout::SLEEP_CONTROL);
    table.sleep_status_reg = port(layout::SLEEP_STATUS);
    bytes(&table.finalize())
}

/// A register of one byte at an I/O port.
fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

/// Processors and the one IOAPIC, whose pins are the global system interrupts. The flag for a
/// second, legacy interrupt controller is clear.
fn madt(cpus: u8) -> Vec<u8> {
    let local = LocalInterruptController::Address(layout::LAPIC_BASE as u32);
    let mut table = MADT::new(OEM, OEM_TABLE, OEM_REVISION, local);
    for cpu in 0..cpus {
        table.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, layout::IOAPIC_BASE as u32, 0));
    bytes(&table)
}

fn dsdt(machine: &Machine<'_>) -> Vec<u8> {
    let mut devices = Vec::new();
    (0..machine.devices).for_each(|index| devices.extend(virtio(index)));
    devices.extend(generation_id());
    devices.extend(event_device());
    if machine.serial {
        devices.extend(serial_port());
    }
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&Scope::raw("\\_SB_".into(), devices));
    table.append_slice(&soft_off());
    bytes(&table)
}

fn virtio(index: u32) -> Vec<u8> {
    let base = layout::VIRTIO_BASE as u32 + index * layout::VIRTIO_WINDOW as u32;
    let window = Memory32Fixed::new(true, base, layout::VIRTIO_WINDOW as u32);
    let interrupt = edge(layout::VIRTIO_GSI + index);
    bytes(&Device::new(
        format!("VR{index:02}").as_str().into(),
        vec![
            &name("_HID", &"LNRO0005"),
            &name("_UID", &index),
            &name("_CRS", &ResourceTemplate::new(vec![&window, &interrupt])),
        ],
    ))
}

/// Where the generation id is. Linux knows the device by either id, the second is the original
/// one, which is longer than an id may be.
fn generation_id() -> Vec<u8> {
    let low = layout::GENERATION_ID as u32;
    let high = (layout::GENERATION_ID >> 32) as u32;
    bytes(&Device::new(
        "VGEN".into(),
        vec![
            &name("_HID", &"PANDVMGI"),
            &name("_CID", &Package::new(vec![&"VMGENCTR", &"VM_Gen_Counter"])),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &Package::new(vec![&low, &high])),
        ],
    ))
}

/// Turns the interrupt of a new generation id into a notification of its device.
fn event_device() -> Vec<u8> {
    let changed = Equal::new(&Arg(0), &layout::GENERATION_GSI);
    let target = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&target, &GENERATION_CHANGED);
    bytes(&Device::new(
        "GED_".into(),
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &0u8),
            &name("_CRS", &ResourceTemplate::new(vec![&edge(layout::GENERATION_GSI)])),
            &Method::new("_EVT".into(), 1, true, vec![&If::new(&changed, vec![&notify])]),
        ],
    ))
}

fn serial_port() -> Vec<u8> {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    bytes(&Device::new(
        "COM1".into(),
        vec![
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &0u8),
            &name("_CRS", &ResourceTemplate::new(vec![&ports, &edge(layout::SERIAL_GSI)])),
        ],
    ))
}

/// The value that goes into both sleep registers of the machine; only one is used.
fn soft_off() -> Vec<u8> {
    let (kind, zero) = (layout::SLEEP_TYPE_OFF, 0u8);
    bytes(&name("_S5_", &Package::new(vec![&kind, &kind, &zero, &zero])))
}

/// An interrupt of its own, triggered by an edge to high.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn machine(cpus: u8, devices: u32, serial: bool) -> Machine<'static> {
        Machine { command_line: "", cpus, devices, serial }
    }

    fn find(tables: &[(u64, Vec<u8>)], address: u64) -> &[u8] {
        &tables.iter().find(|(at, _)| *at == address).unwrap().1
    }

    fn u32_at(table: &[u8], offset: usize) -> u32 {
        u32::from_le_bytes(table[offset..offset + 4].try_into().unwrap())
    }

    fn u64_at(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn tables_have_right_lengths_and_checksums_and_do_not_overlap() {
        for (cpus, devices, serial) in [(1, 0, false), (2, 5, true), (8, 11, true)] {
            let mut tables = tables(&machine(cpus, devices, serial));
            for (address, table) in &tables {
                assert_eq!(sum(table), 0);
                if *address == layout::ACPI_RSDP {
                    assert_eq!((table.len(), sum(&table[..20]), table[15]), (36, 0, 2));
                } else {
                    assert_eq!(u32_at(table, 4) as usize, table.len());
                }
            }
            tables.sort();
            for pair in tables.windows(2) {
                assert!(pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
            }
            let (last, table) = tables.last().unwrap();
            assert!(last + table.len() as u64 <= layout::GENERATION_ID);
        }
    }

    #[test]
    fn every_table_is_reached_from_the_root() {
        let tables = tables(&machine(3, 2, false));
        let xsdt = find(&tables, u64_at(find(&tables, layout::ACPI_RSDP), 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (b"XSDT".as_slice(), 36 + 16));
        let fadt = find(&tables, u64_at(xsdt, 36));
        let madt = find(&tables, u64_at(xsdt, 44));
        assert_eq!((&fadt[..4], &madt[..4]), (b"FACP".as_slice(), b"APIC".as_slice()));
        assert_eq!(&find(&tables, u64_at(fadt, 140))[..4], b"DSDT");
        assert_eq!(tables.len(), 5);
    }

    /// Offsets: ACPI 6.5, table 5.9.
    #[test]
    fn the_fadt_says_how_to_end_and_what_there_is_not() {
        let tables = tables(&machine(1, 1, false));
        let fadt = &tables.iter().find(|(_, table)| table.starts_with(b"FACP")).unwrap().1;
        assert_eq!(fadt.len(), 276);
        assert_eq!(fadt[109..111], [0x24, 0]);
        assert_eq!(u32_at(fadt, 112) >> 20 & 1, 1);
        assert_eq!(u32_at(fadt, 112) >> 10 & 1, 1);
        assert_eq!(fadt[116..129], [1, 8, 0, 1, 0x64, 0, 0, 0, 0, 0, 0, 0, 0xfe]);
        assert_eq!(fadt[244..256], [1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[256..268], [1, 8, 0, 1, 1, 6, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_madt_lists_processors_and_one_ioapic() {
        let table = madt(3);
        assert_eq!(u32_at(&table, 36), 0xfee0_0000);
        assert_eq!(u32_at(&table, 40), 0, "no PIC");
        let mut expected = Vec::new();
        (0..3).for_each(|cpu| expected.extend([0, 8, cpu, cpu, 1, 0, 0, 0]));
        expected.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        assert_eq!(table[44..], expected);
    }

    /// What a second implementation makes of the DSDT.
    #[test]
    fn the_dsdt_reads_as_it_was_meant() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dsdt.aml");
        std::fs::write(&file, dsdt(&machine(1, 2, true))).unwrap();
        let run = Command::new("iasl").arg("-d").arg(&file).output();
        let Ok(output) = run else {
            println!("skipped: no iasl (package acpica-tools)");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(file.with_extension("dsl")).unwrap();
        let words = text.lines().flat_map(|line| line.split("//").next()).collect::<Vec<_>>();
        let words = words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        for expected in [
            r#"Device (VR01) { Name (_HID, "LNRO0005") Name (_UID, One)"#,
            "Memory32Fixed (ReadWrite, 0xD0001000, 0x00001000, )",
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000006, }",
            r#"Device (VGEN) { Name (_HID, "PANDVMGI")"#,
            r#"Name (_CID, Package (0x02) { "VMGENCTR", "VM_Gen_Counter" })"#,
            r#"Name (_DDN, "VM_Gen_Counter")"#,
            "Name (ADDR, Package (0x02) { 0x000FF000, Zero })",
            r#"Device (GED) { Name (_HID, "ACPI0013""#,
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000010, }",
            r"Method (_EVT, 1, Serialized) { If ((Arg0 == 0x10)) { Notify (\_SB.VGEN, 0x80) } }",
            r#"Device (COM1) { Name (_HID, EisaId ("PNP0501")"#,
            "IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08, )",
            "Name (_S5, Package (0x04) { 0x05, 0x05, Zero, Zero })",
        ] {
            assert!(words.contains(expected), "{expected}\nis not in\n{words}");
        }
    }
}
