//! `cargo xtask demo`: from a fresh machine to the sample's answer.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use pandastack_tests::{Options, Server, wait_until};

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
    show(&python, 0, &["sample.py", "timings.py"])?;
    step("the same steps with a machine parked ahead of time");
    show(&python, 1, &["timings.py"])
}

/// Runs scripts against a server with `pool` parked machines per template.
fn show(python: &Path, pool: u32, scripts: &[&str]) -> Result<()> {
    let server = Server::start(Options { pool, ..Options::default() })?;
    let key = fs::read_to_string(server.data().join("api-key"))?;
    let parked = || {
        let stats = server.client().get("/v1/stats").map(|a| a.json()).unwrap_or_default();
        stats["parked"].as_u64() == stats["parked_wanted"].as_u64()
    };
    ensure!(wait_until(Duration::from_secs(60), parked), "no machine gets parked");
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
