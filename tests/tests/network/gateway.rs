//! The gateway itself: one that is killed comes back with what was in force, and opens nothing
//! meanwhile.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use pandastack_tests::{kill, wait_until};
use serde_json::{Value, json};

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

/// What is asked of a gateway while it dies is done by the next one, or refused and the sandbox cut
/// off. In each case what the API says is what holds.
#[test]
fn what_is_asked_while_it_dies_holds_or_the_sandbox_is_cut_off() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.plain()?;
    let fetch = [Probe::dns("a.lab", 1).alone(), Probe::http(SITE_A, "a.lab", "/")];
    let some = json!({ "allow": [{ "host": "a.lab" }] });
    let in_force = || Ok::<_, anyhow::Error>(stage.client.get(&sandbox.path("/egress"))?.json());
    stage.set(&sandbox, &json!("none"))?;
    let none = in_force()?;
    stage.set(&sandbox, &some)?;
    let open = in_force()?;
    for round in 0..6 {
        let (asked, said): (&Value, _) =
            if round % 2 == 0 { (&none, json!("none")) } else { (&open, some.clone()) };
        let first = stage.server.gateway()?;
        // Before it, beside it and after it.
        let (client, wanted) = (stage.server.client(), json!({ "egress": some }));
        let (answer, made) = thread::scope(|scope| -> Result<_> {
            let killer = scope.spawn(|| kill(first));
            let maker = scope.spawn(|| client.create(&wanted));
            let answer = stage.try_set(&sandbox, &said)?;
            killer.join().expect("no panic")?;
            Ok((answer, maker.join().expect("no panic")))
        })?;
        let back = || stage.server.gateway().is_ok_and(|pid| pid != first);
        ensure!(wait_until(Duration::from_secs(20), back), "no other gateway was started");
        let now = in_force()?;
        if answer.status == 200 {
            ensure!(now == *asked, "{asked} was taken, and {now} is in force");
        } else {
            ensure!(answer.status == 503, "{} {}", answer.status, answer.text());
            ensure!(now == none, "it was cut off, and {now} is in force");
        }
        if now == none {
            stage.closed(&sandbox, &fetch)?;
        } else {
            stage.open(&sandbox, &fetch)?;
        }
        // A create that came then has its network, or there is no sandbox.
        if let Ok(made) = made {
            stage.open(&made, &fetch)?;
            made.delete()?;
        }
    }
    let left = stage.client.get("/v1/sandboxes")?.json();
    ensure!(left.as_array().is_some_and(|list| list.len() == 1), "{left}");
    stage.set(&sandbox, &some)?;
    stage.open(&sandbox, &fetch)?;
    Ok(())
}
