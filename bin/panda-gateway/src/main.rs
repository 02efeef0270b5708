//! The network of every sandbox of a host.
//!
//! Started by the server in a jail, with the control socket as descriptor 0; everything else comes
//! over it. See `pandastack_gateway`.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let control = std::io::stdin().as_fd().try_clone_to_owned();
    let served = control.map_err(|error| error.to_string()).and_then(|control| {
        pandastack_gateway::process::run(control).map_err(|error| error.to_string())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the gateway cannot work: {error}");
            ExitCode::FAILURE
        }
    }
}
