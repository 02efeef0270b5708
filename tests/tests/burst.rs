//! Many creates at once on a server that takes few: each is there or is told when to come again, and
//! nothing half-made is left.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::{
    Answer, Client, Footprint, Options, Sandbox, Server, groups_of, machines_below, seconds,
    wait_until,
};
use serde_json::{Value, json};

/// Creates at once.
const BURST: usize = 50;
/// What the server takes.
const MOST: usize = 3;

/// Time for threads and connections that idle to go.
const SETTLE: Duration = Duration::from_secs(40);

fn burst(client: &Client, body: &Value) -> Result<Vec<Answer>> {
    let asking: Vec<_> = (0..BURST)
        .map(|_| {
            let (client, body) = (client.clone(), body.clone());
            thread::spawn(move || client.post("/v1/sandboxes", &body))
        })
        .collect();
    asking.into_iter().map(|one| one.join().expect("no panic")).collect()
}

/// The sandboxes that were made; all other answers are refusals as clients want them.
fn made(client: &Client, answers: Vec<Answer>) -> Result<Vec<Sandbox>> {
    let mut made = Vec::new();
    for answer in answers {
        let object = answer.json();
        if answer.status == 201 {
            made.push(client.made(&answer)?);
            continue;
        }
        let (status, text) = (answer.status, answer.text());
        ensure!(status == 503 || status == 507 || status == 429, "{status} {text}");
        let pause: u32 = answer.retry_after.with_context(|| text.clone())?.parse()?;
        ensure!((1..=60).contains(&pause) && object["error"].is_string(), "{pause} {text}");
    }
    Ok(made)
}

fn listed(client: &Client) -> Result<BTreeSet<String>> {
    let all = client.get("/v1/sandboxes")?.json();
    let ids = all.as_array().context("an array")?.iter().map(|one| one["id"].as_str());
    ids.map(|id| id.map(str::to_owned).context("an id")).collect()
}

#[test]
fn a_burst_is_served_or_told_when_to_come_again() -> Result<()> {
    let args = ["--max-sandboxes", &MOST.to_string()].map(str::to_owned).to_vec();
    let server = Server::start(Options { fork: true, args, ..Options::default() })?;
    server.wait_for_zygotes()?;
    let client = server.client();
    let body = json!({ "template": "base", "ttl_seconds": seconds(600) });
    // What a server keeps for good, it has after a first round of the same kind.
    made(&client, burst(&client, &body)?)?.into_iter().try_for_each(|s| s.delete().map(drop))?;
    let at_rest = || listed(&client).is_ok_and(|ids| ids.is_empty());
    ensure!(wait_until(SETTLE, at_rest), "they stay: {:?}", listed(&client)?);
    let before = Footprint::settled(&server, SETTLE)?;

    let sandboxes = made(&client, burst(&client, &body)?)?;
    ensure!(sandboxes.len() == MOST, "{} of {MOST} were made", sandboxes.len());
    let ids: BTreeSet<String> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
    ensure!(listed(&client)? == ids, "listed are {:?}, made were {ids:?}", listed(&client)?);
    let housed = || server.machine_dirs() == before.machine_dirs + MOST;
    ensure!(
        wait_until(SETTLE, housed),
        "{} machines for {MOST} sandboxes and {} of before",
        server.machine_dirs(),
        before.machine_dirs
    );
    let mut groups = BTreeSet::new();
    for sandbox in &sandboxes {
        ensure!(sandbox.output("echo x")? == "x\n", "a wrong answer");
        groups.extend(groups_of(sandbox.pid()?));
    }
    for sandbox in sandboxes {
        let deleted = sandbox.delete()?;
        ensure!(deleted.status == 204, "delete answered {} {}", deleted.status, deleted.text());
    }
    let back = || Footprint::of(&server).is_back_at(&before);
    ensure!(wait_until(SETTLE, back), "{before:?} became {:?}", Footprint::of(&server));
    let left = || groups.iter().filter(|group| group.exists()).collect::<Vec<_>>();
    ensure!(wait_until(SETTLE, || left().is_empty()), "control groups are left: {:?}", left());
    Ok(())
}

#[test]
fn a_host_without_room_refuses_before_anything_exists() -> Result<()> {
    let server = Server::start(Options {
        args: vec!["--memory-reserve".to_owned(), "1000000000".to_owned()],
        ..Options::default()
    })?;
    let client = server.client();
    let before = server.machine_dirs();
    for answer in burst(&client, &json!({ "template": "base" }))? {
        if answer.status != 507 || answer.retry_after.is_none() {
            bail!("{} {}", answer.status, answer.text());
        }
        ensure!(answer.error().contains("not enough host memory"), "{}", answer.text());
    }
    ensure!(server.machine_dirs() == before, "{} directories", server.machine_dirs());
    ensure!(machines_below(server.pid()) == 0, "{} machines", machines_below(server.pid()));
    ensure!(listed(&client)?.is_empty(), "{:?}", listed(&client)?);
    Ok(())
}
