//! A machine: memory, devices, and the state of its processors.
//!
//! ```text
//!            new (boot, restore, fork)
//!                     │
//!                     ▼        a virtual machine is made              run: threads
//!   ┌────────▶  standing still ─────────────────────▶ ready ────────────────────▶ running ──▶ over
//!   │          (a state, no VM) ◀── fork, discarded ──  (a state, its VM)            │
//!   └─────────────────────────────────────────────────────────────────────────────────┘
//!              pause: threads end, the state is read, the virtual machine goes
//! ```
//!
//! A machine that runs passes through *ready*; one that waits for its tenant waits there, with the
//! pages it needs first in place ([`Machine::make_ready`]). Its time does not begin before it runs.
//!
//! **The process has one thread whenever its machine stands still.** Not parked threads: none. So a
//! fork never copies a lock that somebody holds, and the child can do whatever a new process can.
//! A live fork stops the machine, reads its state and goes on with the same virtual machine
//! ([`Machine::halt`], [`Machine::go_on`]); only the child makes a new one.

mod board;
mod threads;

use std::io;
use std::sync::Arc;

pub use self::board::{Board, Wiring};
use self::threads::Live;
use crate::GuestMemory;
use crate::clock::Stages;
use crate::kvm::state::{self, RestoreError};
use crate::kvm::{Exit, Host, KvmError, Vcpu, Vm, VmState};
use crate::memory::working_set::WorkingSet;
use crate::memory::{Extent, Mapping};

/// Why a machine could not run or stop.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The state cannot be taken over.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A thread could not be had.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread ended in a way that it never should.
    #[error("a thread of the machine was lost")]
    Lost,
}

/// A machine.
pub struct Machine {
    /// What KVM can do here.
    pub host: Host,
    /// Its memory, as the process has it.
    pub mapping: Mapping,
    /// Its memory, as devices have it.
    pub memory: GuestMemory,
    /// Devices and interrupts.
    pub board: Arc<Board>,
    /// Pages in which its memory differed from that of its bake when it was restored.
    pub diff: Vec<Extent>,
    /// Pages that it needs first when it runs for the first time after it was made or copied.
    pub working_set: WorkingSet,
    /// A new generation id is due when it runs: it is a copy.
    pub is_copy: bool,
    life: Life,
}

enum Life {
    Still(Box<VmState>),
    Ready(Ready),
    Running(Live),
    /// Only while it changes from one to the other; a machine that stays here has failed.
    Between,
}

/// A virtual machine that has not run since it was made of this state.
struct Ready {
    state: Box<VmState>,
    vm: Arc<Vm>,
    vcpus: Vec<Vcpu>,
}

/// A machine that was stopped for a moment, with its virtual machine.
pub struct Halted {
    vm: Arc<Vm>,
    vcpus: Vec<Vcpu>,
    /// What a copy begins with.
    pub state: Box<VmState>,
}

impl Machine {
    /// A machine that stands still.
    pub fn new(
        host: Host,
        mapping: Mapping,
        memory: GuestMemory,
        board: Arc<Board>,
        state: VmState,
    ) -> Self {
        Self {
            host,
            mapping,
            memory,
            board,
            diff: Vec::new(),
            working_set: WorkingSet::default(),
            is_copy: false,
            life: Life::Still(Box::new(state)),
        }
    }

    /// The state of a machine that stands still.
    pub fn state(&self) -> Option<&VmState> {
        match &self.life {
            Life::Still(state) => Some(state),
            Life::Ready(ready) => Some(&ready.state),
            _ => None,
        }
    }

    /// Makes its virtual machine and gives it the pages that it needs first, so that running it
    /// takes next to nothing. Takes the time that this saves and more: it is for a machine that
    /// nobody waits for. Nothing if it is ready, or runs.
    pub fn make_ready(&mut self, clock: &mut Stages) -> Result<(), MachineError> {
        self.make(clock)?;
        if let Life::Ready(ready) = &self.life {
            let set = std::mem::take(&mut self.working_set);
            set.copy(&self.mapping);
            clock.lap("copy");
            // One of them is enough: they walk the same tables.
            if let Some(vcpu) = ready.vcpus.first() {
                set.premap(&self.mapping, vcpu);
            }
            clock.lap("premap");
        }
        Ok(())
    }

    /// Lets it run. Says how it spent its time.
    pub fn run(&mut self, clock: &mut Stages) -> Result<(), MachineError> {
        self.make(clock)?;
        let Ready { state, vm, vcpus } = match std::mem::replace(&mut self.life, Life::Between) {
            Life::Ready(ready) => ready,
            other => {
                self.life = other;
                return Ok(());
            }
        };
        match self.launch(&state, vm, vcpus) {
            Ok(live) => {
                clock.lap("threads");
                self.life = Life::Running(live);
                Ok(())
            }
            Err(error) => {
                self.board.wiring.connect(None);
                self.life = Life::Still(state);
                Err(error)
            }
        }
    }

    /// Gets it the pages that it is about to write, which it would otherwise get one by one, with an
    /// exit each. For one that runs already: whoever has time for it does it beside the guest.
    pub fn copy_working_set(&mut self) {
        std::mem::take(&mut self.working_set).copy(&self.mapping);
    }

    /// From standing still to ready.
    fn make(&mut self, clock: &mut Stages) -> Result<(), MachineError> {
        let Life::Still(state) = &self.life else { return Ok(()) };
        let (vm, vcpus) = Vm::new(&self.host, &self.memory, &state.cpuid()?)?;
        clock.lap("vm");
        state::restore(&self.host, &vcpus, state)?;
        clock.lap("state");
        if let Life::Still(state) = std::mem::replace(&mut self.life, Life::Between) {
            self.life = Life::Ready(Ready { state, vm: Arc::new(vm), vcpus });
        }
        Ok(())
    }

    fn launch(
        &mut self,
        state: &VmState,
        vm: Arc<Vm>,
        vcpus: Vec<Vcpu>,
    ) -> Result<Live, MachineError> {
        state::start_time(&vm, &vcpus, state)?;
        self.board.wiring.connect(Some(vm.clone()));
        // After the local APICs have their state, which would erase an interrupt.
        if std::mem::take(&mut self.is_copy) {
            self.board.announce_copy(&self.memory);
        }
        Live::start(vm, vcpus, &self.board)
    }

    /// Stops it; the virtual machine goes, its state stays.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        if let Some(halted) = self.halt()? {
            self.life = Life::Still(halted.state);
        }
        Ok(())
    }

    /// Stops it for a moment. Nothing if it stands still anyway; a virtual machine that was made
    /// for it goes, because a copy could not use it.
    pub fn halt(&mut self) -> Result<Option<Halted>, MachineError> {
        let live = match std::mem::replace(&mut self.life, Life::Between) {
            Life::Running(live) => live,
            Life::Ready(ready) => {
                self.life = Life::Still(ready.state);
                return Ok(None);
            }
            other => {
                self.life = other;
                return Ok(None);
            }
        };
        let (vm, vcpus) = live.stop(&self.board)?;
        let state = state::save(&self.host, &vm, &vcpus)?;
        self.board.wiring.connect(None);
        Ok(Some(Halted { vm, vcpus, state: Box::new(state) }))
    }

    /// Goes on after [`Machine::halt`], as if nothing had been.
    pub fn go_on(&mut self, halted: Halted) -> Result<(), MachineError> {
        self.board.wiring.connect(Some(halted.vm.clone()));
        self.life = Life::Running(Live::start(halted.vm, halted.vcpus, &self.board)?);
        Ok(())
    }

    /// In a copy: lets go of the virtual machine of the source, which it cannot use, and stands
    /// still in its state.
    pub fn stand(&mut self, halted: Halted) {
        self.life = Life::Still(halted.state);
        self.board.wiring.connect(None);
    }

    /// How the machine ended, if it did so by itself.
    pub fn over(&mut self) -> Option<Exit> {
        match &mut self.life {
            Life::Running(live) => live.over(),
            _ => None,
        }
    }
}
