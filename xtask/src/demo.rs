//! `cargo xtask demo`: from a fresh machine to the sample's answer.

use std::fs;
use std::process::Command;

use anyhow::Result;
use pandastack_tests::{Options, Server};

use crate::run::{must, step, workspace};
use crate::{prepare, venv};

/// Parked machines of the demo's server.
const POOL: u32 = 1;

/// Runs the demo; nothing it started is left running.
pub fn run() -> Result<()> {
    prepare::packages(false)?;
    let program = prepare::program()?;
    prepare::templates(&program)?;
    let sdk = workspace().join("sdk/python");
    let python = venv::python("demo", &["./sdk/python"], Some(&sdk))?;

    step("starting a server on loopback and running the sample");
    let server = Server::start(Options { pool: POOL, ..Options::default() })?;
    let key = fs::read_to_string(server.data().join("api-key"))?;
    let ran = must(
        Command::new(python)
            .arg(workspace().join("xtask/src/demo.py"))
            .arg(workspace().join("xtask/src/sample.py"))
            .env("PANDASTACK_API", server.url())
            .env("PANDASTACK_API_KEY", key.trim()),
    );
    server.stop()?;
    ran
}
