//! Live forks: one child and eight, children of children, of a paused parent, and all of them
//! going their own way.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use pandastack_tests::{Numbers, Sandbox, Server, every, wait_until};
use serde_json::json;

/// Counts in memory, in the background.
fn start_counter(sandbox: &Sandbox) -> Result<String> {
    let counter = every("0.2", "echo $i > /dev/shm/n");
    sandbox.output(&format!("{counter} >/dev/null 2>&1 </dev/null & echo $!"))
}

/// How far it is; a reader may find the file empty while it is written.
fn count(sandbox: &Sandbox) -> Result<u64> {
    let mut found = Err(anyhow!("no number"));
    wait_until(Duration::from_secs(20), || {
        found = sandbox.output("cat /dev/shm/n").and_then(|n| Ok(n.trim().parse()?));
        found.is_ok()
    });
    found
}

fn read(sandbox: &Sandbox) -> Result<String> {
    sandbox.output("sync; echo 3 > /proc/sys/vm/drop_caches; cat /root/file /dev/shm/file")
}

#[test]
fn one_child_and_eight_have_everything_of_their_parent() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let parent = client.base()?;
    let counting = start_counter(&parent)?;
    parent.output("echo disk > /root/file; echo memory > /dev/shm/file")?;
    for children in [1, 8] {
        let before = count(&parent).context("the parent's counter")?;
        let tree = parent.fork_tree(children)?;
        assert_eq!(tree.object["parent_id"], json!(parent.id));
        assert!(tree.object["pause_ms"].as_f64().context("pause_ms")? > 0.0);
        let ids: BTreeSet<_> = tree.children.iter().map(|child| &child.id).collect();
        assert_eq!(ids.len(), children);
        for child in &tree.children {
            assert_eq!(child.object["status"], "running");
            assert_eq!(child.object["boot_mode"], "fork");
            assert_eq!(read(child)?, "disk\nmemory\n");
            // The process goes on in the child, from where it was.
            child.output(&format!("kill -0 {}", counting.trim()))?;
            let first = count(child).context("the child's counter")?;
            assert!(first >= before, "{first} after {before}");
            let more = || count(child).is_ok_and(|now| now > first);
            assert!(wait_until(Duration::from_secs(20), more), "a child's counter stands still");
        }
        for (index, child) in tree.children.iter().enumerate() {
            child.output(&format!("echo {index} > /root/file; echo {index} > /dev/shm/file"))?;
        }
        for (index, child) in tree.children.iter().enumerate() {
            assert_eq!(read(child)?, format!("{index}\n{index}\n"));
        }
        assert_eq!(read(&parent)?, "disk\nmemory\n");
        for child in &tree.children {
            assert_eq!(child.delete()?.status, 204);
        }
    }
    let last = count(&parent).context("the parent's counter")?;
    assert!(wait_until(Duration::from_secs(20), || count(&parent).is_ok_and(|n| n > last)));
    Ok(())
}

#[test]
fn a_chain_of_forks_outlives_its_ancestors() -> Result<()> {
    let server = Server::forking()?;
    let mut youngest = server.client().base()?;
    for generation in 0..6 {
        youngest.output(&format!(
            "echo {generation} >> /root/file; echo {generation} >> /dev/shm/file; sync"
        ))?;
        let child = youngest.fork(1)?.remove(0);
        youngest.delete()?;
        youngest = child;
    }
    assert_eq!(read(&youngest)?, "0\n1\n2\n3\n4\n5\n".repeat(2));
    Ok(())
}

#[test]
fn a_paused_parent_stays_paused_and_its_children_run() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let parent = client.base()?;
    let numbers = Numbers::start(&client, &parent)?;
    parent.output("echo kept > /root/file; echo kept > /dev/shm/file")?;
    parent.pause()?;
    let children = parent.fork(2)?;
    assert_eq!(parent.status()?, "paused");
    for child in &children {
        assert_eq!(read(child)?, "kept\nkept\n");
    }
    parent.resume()?;
    numbers.wait_for(3)?;
    numbers.finish()?;
    assert_eq!(read(&parent)?, "kept\nkept\n");
    Ok(())
}

#[test]
fn two_sandboxes_that_came_by_the_same_zygote_share_nothing() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let (one, two) = (client.base()?, client.base()?);
    one.output("echo one > /root/file; echo one > /dev/shm/file; sync")?;
    two.output("test ! -e /root/file && test ! -e /dev/shm/file")?;
    two.output("echo two > /root/file; echo two > /dev/shm/file; sync")?;
    assert_eq!(read(&one)?, "one\none\n");
    assert_eq!(read(&two)?, "two\ntwo\n");
    Ok(())
}
