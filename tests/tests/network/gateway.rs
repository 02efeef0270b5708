//! The gateway itself: one that is killed comes back with what was in force, and opens nothing
//! meanwhile.

use std::time::Duration;

use anyhow::{Result, ensure};
use pandastack_tests::{kill, wait_until};
use serde_json::json;

use crate::guest::Probe;
use crate::stage::{SITE_A, SITE_B, Stage};

#[test]
fn one_that_is_killed_comes_back_with_the_policies_of_that_moment() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let open = stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }] }))?;
    let closed = stage.plain()?;
    let fetch = [Probe::dns("a.lab", 1).alone(), Probe::http(SITE_A, "a.lab", "/")];
    let other = [Probe::dns("b.lab", 1), Probe::http(SITE_B, "b.lab", "/")];
    stage.open(&open, &fetch)?;
    let first = stage.server.gateway()?;
    kill(first)?;
    stage.closed(&closed, &fetch)?;
    let back = || {
        let outcomes = stage.attempt(&open, &fetch);
        outcomes.is_ok_and(|outcomes| outcomes.iter().all(|outcome| outcome.ok))
    };
    ensure!(wait_until(Duration::from_secs(20), back), "the network is not there again");
    ensure!(stage.server.gateway()? != first, "it was not killed");
    stage.closed(&open, &other)?;
    stage.closed(&closed, &fetch)?;
    // The new one obeys as well, for machines that it found and for new ones.
    stage.set(&open, &json!("none"))?;
    stage.closed(&open, &fetch)?;
    let fresh = stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }] }))?;
    stage.open(&fresh, &fetch)?;
    Ok(())
}
