//! The proof that KVM works here: a guest of three instructions in long mode.
//!
//! The presence of `/dev/kvm` proves little. Some hosts have one that makes virtual machines and
//! cannot run a stock guest in them, and a nested host may have the feature switched off.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use kvm_bindings::CpuId;
use vm_memory::{Bytes, GuestAddress};

use super::{Exit, Handler, Host, KvmError, Vm, cpuid};
use crate::boot::{self, Entry, Protocol};
use crate::layout;
use crate::memory::Mapping;

/// Memory of the guest.
const BYTES: u64 = 4 << 20;
/// Where it says its word, and the word.
const PORT: u16 = 0x510;
const WORD: u8 = b'P';

/// `mov al, WORD; mov dx, PORT; out dx, al; hlt; jmp $`
const CODE: [u8; 10] =
    [0xb0, WORD, 0x66, 0xba, PORT as u8, (PORT >> 8) as u8, 0xee, 0xf4, 0xeb, 0xfe];

/// Why KVM is of no use here.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It refused something that every guest needs.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest did not do what it should.
    #[error("a guest of three instructions did not run as it should: {0}")]
    Guest(&'static str),
}

/// Runs the guest. If it hangs, so does this: whoever asks has a deadline.
pub fn prove(host: &Host) -> Result<(), ProofError> {
    let mapping = Mapping::anonymous(BYTES).map_err(|_| ProofError::Guest("no memory"))?;
    let memory = mapping.guest();
    memory
        .write_slice(&CODE, GuestAddress(layout::HIGH_RAM))
        .map_err(|_| ProofError::Guest("no memory"))?;
    let list = cpuid::for_vcpu(&host.cpuid, 0, 1, host.tsc_deadline);
    let list = CpuId::from_entries(&list).map_err(|_| ProofError::Guest("too much CPUID"))?;
    let (_vm, mut vcpus) = Vm::new(host, &memory, &[list])?;
    let entry = Entry { protocol: Protocol::Linux64, address: layout::HIGH_RAM };
    boot::write_tables(&memory, entry.protocol).map_err(|_| ProofError::Guest("no memory"))?;
    vcpus[0].set_boot_state()?;
    vcpus[0].set_boot_registers(entry)?;
    let heard = Listener::default();
    let exit = vcpus[0].run(&heard, &AtomicBool::new(false))?;
    match (exit, heard.word.into_inner().ok().flatten()) {
        (Exit::PowerOff, Some(WORD)) => Ok(()),
        (Exit::PowerOff, _) => Err(ProofError::Guest("it said something else")),
        _ => Err(ProofError::Guest("it crashed")),
    }
}

/// Hears the word.
#[derive(Default)]
struct Listener {
    word: Mutex<Option<u8>>,
}

impl Handler for Listener {
    fn port_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&self, port: u16, data: &[u8]) -> Option<Exit> {
        if let (PORT, Ok(mut word)) = (port, self.word.lock()) {
            *word = data.first().copied();
        }
        Some(Exit::PowerOff)
    }

    fn memory_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn memory_write(&self, _: u64, _: &[u8]) {}

    fn interrupt_ended(&self, _: u8) {}
}
