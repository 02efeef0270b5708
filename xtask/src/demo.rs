//! `cargo xtask demo`: from a fresh machine to the sample's answer.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use pandastack_tests::{Options, Server};

use crate::run::{must, step, workspace};
use crate::{prepare, venv};

/// Runs the demo; nothing it started is left running.
pub fn run() -> Result<()> {
    prepare::packages(false)?;
    let program = prepare::program()?;
    prepare::templates(&program)?;
    let sdk = workspace().join("sdk/python");
    let python = venv::python("demo", &["./sdk/python"], Some(&sdk))?;

    step("starting a server on loopback and running the sample");
    show(&python, true, &["sample.py", "timings.py"])?;
    step("the same steps without forks: restored from the template's files");
    show(&python, false, &["timings.py"])
}

/// Runs scripts against a server whose sandboxes are forked, or restored.
fn show(python: &Path, fork: bool, scripts: &[&str]) -> Result<()> {
    let server = Server::start(Options { fork, ..Options::default() })?;
    if fork {
        server.wait_for_zygotes()?;
    }
    let key = fs::read_to_string(server.data().join("api-key"))?;
    for script in scripts {
        must(
            Command::new(python)
                .arg(workspace().join("xtask/src").join(script))
                .env("PANDASTACK_API", server.url())
                .env("PANDASTACK_API_KEY", key.trim()),
        )?;
    }
    server.stop().map(drop)
}
