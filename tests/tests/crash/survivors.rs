//! Machines that outlive their server, whose next server is killed while it takes them over: the one
//! after that finds them as they were.

use anyhow::{Context, Result, ensure};
use pandastack_sandbox::fault::Point;
use pandastack_tests::{Options, Sandbox, Server, faulty_program, is_alive, names_in, wait_until};

use crate::lab::{SETTLE, arm};
use crate::steps::{Step, furnish, intact};

/// One that runs and one that is paused, over as many servers as there are points, and twice that.
pub fn taken_over(step: Step) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let options = || {
        let (data, program) = (Some(data.clone()), Some(faulty_program()));
        Options { data, program, orphan_grace: 600, ..Options::default() }
    };
    let mut server = Some(Server::start(options())?);
    let client = server.as_ref().context("it runs")?.client();
    let (running, paused) = (furnish(client.base()?)?, furnish(client.base()?)?);
    let pids = [running.pid()?, paused.pid()?];
    paused.pause()?;

    let mut asked = 1;
    step.each(|point| {
        server.take().context("it runs")?.kill()?;
        arm(&data, point)?;
        Server::start_in_vain(options())?;
        ensure!(!data.join("fault").exists(), "it died elsewhere");
        let next = server.insert(Server::start(options())?);
        asked += 1;
        go_on(next, [&running, &paused], pids, asked, point)
    })?;

    let server = server.context("it runs")?;
    let client = server.client();
    for sandbox in [&running, &paused] {
        ensure!(sandbox.under(&client).delete()?.status == 204);
    }
    ensure!(server.stop()?.success(), "it did not stop in order");
    let left = || names_in(&data.join("machines"));
    ensure!(wait_until(SETTLE, || left().is_empty()), "machines are left: {:?}", left());
    ensure!(wait_until(SETTLE, || !pids.into_iter().any(is_alive)), "processes are left");
    Ok(())
}

/// Both are as they were, in the machines that they had.
fn go_on(
    server: &Server,
    [running, paused]: [&Sandbox; 2],
    pids: [u32; 2],
    asked: u32,
    point: Point,
) -> Result<()> {
    let client = server.client();
    let (running, paused) = (running.under(&client), paused.under(&client));
    ensure!([running.pid()?, paused.pid()?] == pids, "other machines after {point:?}");
    ensure!(running.status()? == "running" && paused.status()? == "paused", "{point:?}");
    intact(&client, &running, asked)?;
    paused.resume()?;
    intact(&client, &paused, asked)?;
    paused.pause()
}
