//! Snapshots on disk: of a sandbox that runs on, of one that is paused, of one that is itself made
//! of a snapshot; and what they are worth when their origin, or their server, is gone.

use anyhow::{Context, Result};
use pandastack_tests::{Numbers, Options, Sandbox, Server};
use serde_json::json;

const FILES: &str = "cat /root/file /dev/shm/file";

fn write(sandbox: &Sandbox, word: &str) -> Result<()> {
    let line = format!("echo {word} >> /root/file; echo {word} >> /dev/shm/file");
    sandbox.output(&line).map(drop)
}

/// Reads both files, the one on disk from the disk itself.
fn read(sandbox: &Sandbox) -> Result<String> {
    sandbox.output("sync; echo 3 > /proc/sys/vm/drop_caches")?;
    sandbox.output(FILES)
}

#[test]
fn a_snapshot_is_of_one_instant_and_outlives_its_origin() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    write(&source, "first")?;
    let numbers = Numbers::start(&client, &source)?;
    let first = source.snapshot()?;
    // Its commands did not notice.
    numbers.wait_for(3)?;
    numbers.finish()?;
    write(&source, "later")?;
    assert_eq!(read(&source)?, "first\nlater\nfirst\nlater\n");
    source.delete()?;

    let (one, two) = (client.thaw(&first)?, client.thaw(&first)?);
    assert_eq!(one.object["boot_mode"], "snapshot");
    assert_eq!(one.object["from_snapshot"], json!(first));
    write(&one, "one")?;
    assert_eq!(read(&one)?, "first\none\nfirst\none\n");
    assert_eq!(read(&two)?, "first\nfirst\n", "two sandboxes of a snapshot share something");

    // Of a restored one, whose own origin is deleted in between.
    let second = one.snapshot()?;
    assert_eq!(client.delete(&format!("/v1/snapshots/{first}"))?.status, 204);
    let third = one.snapshot()?;
    one.delete()?;
    assert_eq!(read(&client.thaw(&second)?)?, "first\none\nfirst\none\n");
    let thawed = client.thaw(&third)?;
    assert_eq!(read(&thawed)?, "first\none\nfirst\none\n");
    write(&two, "two")?;
    assert_eq!(read(&two)?, "first\ntwo\nfirst\ntwo\n", "after its snapshot was deleted");
    // It forks like any other.
    let child = thawed.fork(1)?.remove(0);
    assert_eq!(read(&child)?, "first\none\nfirst\none\n");

    let gone = client.post("/v1/sandboxes", &json!({ "from_snapshot": first }))?;
    assert_eq!(gone.status, 404, "{}", gone.text());
    Ok(())
}

#[test]
fn a_paused_sandbox_is_snapshotted_and_stays_paused() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    write(&source, "kept")?;
    source.pause()?;
    let snapshot = source.snapshot()?;
    assert_eq!(source.status()?, "paused");
    assert_eq!(read(&client.thaw(&snapshot)?)?, "kept\nkept\n");
    source.resume()?;
    assert_eq!(read(&source)?, "kept\nkept\n");
    Ok(())
}

#[test]
fn a_snapshot_outlives_its_server() -> Result<()> {
    let server = Server::forking()?;
    let source = server.client().base()?;
    write(&source, "kept")?;
    let snapshot = source.snapshot()?;
    let size = server.client().get(&format!("/v1/snapshots/{snapshot}"))?.json();
    assert!(size["size_bytes"].as_u64().context("a size")? > 0, "{size}");
    let (data, keep) = server.kill()?;
    let server = Server::start(Options { data: Some(data), fork: true, ..Options::default() })?;
    let client = server.client();
    let listed = client.get("/v1/snapshots")?.json();
    assert_eq!(listed["snapshots"][0]["id"], json!(snapshot), "{listed}");
    assert_eq!(read(&client.thaw(&snapshot)?)?, "kept\nkept\n");
    drop((server, keep));
    Ok(())
}
