//! The monitor of one machine.
//!
//! Started by a supervisor in a jail, with the control socket as descriptor 3; everything else
//! comes over it. See `pandastack_vmm`.

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

use pandastack_vmm::control::CONTROL_FD;

fn main() -> ExitCode {
    // SAFETY: by contract with the supervisor this number is the control socket, and nobody else
    // in this process uses it.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    match pandastack_vmm::run(control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the monitor cannot work: {error}");
            ExitCode::FAILURE
        }
    }
}
