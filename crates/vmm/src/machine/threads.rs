//! The threads of a running machine: one per vCPU and one for all devices.
//!
//! They live as long as the machine runs, and end, without anything half done, when it stops.
//! vCPUs go first: devices may be needed to complete what a vCPU has begun.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use super::{Board, MachineError};
use crate::kvm::{Exit, Handler, Kick, KvmError, Vcpu, Vm};
use crate::lockdown;

/// Bytes of a thread's stack: some frames, and bounce buffers are on the heap.
const STACK: usize = 256 << 10;

/// A running machine.
pub(super) struct Live {
    vm: Arc<Vm>,
    vcpus: Vec<JoinHandle<Ended>>,
    devices: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

/// A vCPU whose thread has ended, and why.
struct Ended {
    vcpu: Vcpu,
    exit: Result<Exit, KvmError>,
}

impl Live {
    pub fn start(vm: Arc<Vm>, vcpus: Vec<Vcpu>, board: &Arc<Board>) -> Result<Self, MachineError> {
        let stop = Arc::new(AtomicBool::new(false));
        let served = board.clone();
        let devices = Builder::new()
            .name("devices".into())
            .stack_size(STACK)
            .spawn(move || {
                if locked(lockdown::devices()) {
                    served.serve();
                }
            })
            .map_err(MachineError::Thread)?;
        let mut live = Self { vm, vcpus: Vec::with_capacity(vcpus.len()), devices, stop };
        for vcpu in vcpus {
            let thread = live.start_vcpu(vcpu, board.clone());
            live.vcpus.push(thread.map_err(MachineError::Thread)?);
        }
        Ok(live)
    }

    fn start_vcpu(&self, mut vcpu: Vcpu, board: Arc<Board>) -> std::io::Result<JoinHandle<Ended>> {
        let stop = self.stop.clone();
        let name = format!("vcpu{}", vcpu.index());
        Builder::new().name(name).stack_size(STACK).spawn(move || {
            let handler: &dyn Handler = &*board;
            let exit =
                if locked(lockdown::vcpu()) { vcpu.run(handler, &stop) } else { Ok(Exit::Crash) };
            if !matches!(exit, Ok(Exit::Stopped)) {
                board.ring();
            }
            Ended { vcpu, exit }
        })
    }

    /// Ends all threads and gives back what they worked on.
    pub fn stop(self, board: &Board) -> Result<(Arc<Vm>, Vec<Vcpu>), MachineError> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in &self.vcpus {
            // SAFETY: the thread was not joined, so its handle is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), Kick::signal()) };
        }
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        let mut failed = None;
        for thread in self.vcpus {
            let ended = thread.join().map_err(|_| MachineError::Lost)?;
            failed = failed.or(ended.exit.err());
            vcpus.push(ended.vcpu);
        }
        board.stop();
        self.devices.join().map_err(|_| MachineError::Lost)?;
        match failed {
            Some(error) => Err(error.into()),
            None => Ok((self.vm, vcpus)),
        }
    }

    /// How the machine ended by itself, if a vCPU says so.
    pub fn over(&mut self) -> Option<Exit> {
        let at = self.vcpus.iter().position(JoinHandle::is_finished)?;
        let ended = self.vcpus.swap_remove(at).join();
        Some(match ended {
            Ok(Ended { exit: Ok(exit), .. }) => exit,
            Ok(Ended { exit: Err(error), .. }) => {
                eprintln!("{error}: {}", error.source);
                Exit::Crash
            }
            Err(_) => Exit::Crash,
        })
    }
}

/// Whether a thread has given up what it does not need. One that could not serves no guest.
fn locked(result: std::io::Result<()>) -> bool {
    if let Err(error) = &result {
        eprintln!("a thread could not lock itself down: {error}");
    }
    result.is_ok()
}
