//! Live forks through the whole server: what a child has of its parent, and what it must not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{
    Client, Options, Sandbox, Server, Stress, every, is_alive, kill, wait_until,
};
use serde_json::{Value, json};

/// A server whose creates fork zygotes, once they do.
fn forking(args: &[&str]) -> Result<Server> {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let server = Server::start(Options { fork: true, args, ..Options::default() })?;
    server.wait_for_zygotes()?;
    Ok(server)
}

/// Sockets, pipes and files open for writing: what one process could reach another by.
fn private_files(pid: u32) -> Result<BTreeSet<(u64, u64, String)>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let name = fs::read_link(entry.path())?.to_string_lossy().into_owned();
        let common = ["/dev/null", "anon_inode:", "/memfd:guest-memory"];
        if common.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let writable = fs::symlink_metadata(entry.path())?.mode() & 0o200 != 0;
        if writable || !name.starts_with('/') {
            let file = fs::metadata(entry.path())?;
            files.insert((file.dev(), file.ino(), name));
        }
    }
    Ok(files)
}

fn namespace(pid: u32, name: &str) -> Result<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).context("a namespace")?;
    Ok(link.to_string_lossy().into_owned())
}

fn cgroup(pid: u32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/cgroup"))?)
}

fn gone(pids: &[u32]) -> bool {
    !pids.iter().any(|pid| is_alive(*pid))
}

#[test]
fn a_child_has_everything_of_its_parent_and_goes_its_own_way() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let parent = client.base()?;
    assert_eq!(parent.object["boot_mode"], "fork");
    let counter = every("0.05", "echo $i > /dev/shm/n");
    let counter = format!("{counter} >/dev/null 2>&1 </dev/null & echo $!");
    let counting = parent.output(&counter)?;
    parent.output("echo disk > /root/file; echo memory > /dev/shm/file")?;
    assert!(wait_until(Duration::from_secs(20), || {
        parent.output("cat /dev/shm/n 2>/dev/null; true").is_ok_and(|n| !n.is_empty())
    }));
    let children = parent.fork(3)?;
    for child in &children {
        assert_eq!(child.object["status"], "running");
        assert_eq!(child.object["boot_mode"], "fork");
        assert_eq!(child.output("cat /root/file /dev/shm/file")?, "disk\nmemory\n");
        // The process goes on in the child, from where it was.
        child.output(&format!("kill -0 {}", counting.trim()))?;
        let read = || child.output("cat /dev/shm/n").ok()?.trim().parse::<u64>().ok();
        // A reader may find the file empty while it is written.
        assert!(wait_until(Duration::from_secs(20), || read().is_some()));
        let first = read().unwrap_or(0);
        assert!(wait_until(Duration::from_secs(20), || read().is_some_and(|n| n > first)));
    }
    children[0].output("echo other > /root/file; echo other > /dev/shm/file; sync")?;
    for other in [&parent, &children[1]] {
        other.output("sync; echo 3 > /proc/sys/vm/drop_caches")?;
        assert_eq!(other.output("cat /root/file /dev/shm/file")?, "disk\nmemory\n");
    }
    Ok(())
}

#[test]
fn nothing_of_a_parent_can_be_reached_from_a_child() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let parent = client.base()?;
    parent.output("echo written > /root/file; sync")?;
    let mut family = vec![parent.clone(), client.base()?];
    family.extend(parent.fork(2)?);
    let grandchild = family[2].fork(1)?;
    family.extend(grandchild);
    let pids = family.iter().map(Sandbox::pid).collect::<Result<Vec<_>>>()?;
    for (i, &one) in pids.iter().enumerate() {
        let root = fs::read_dir(format!("/proc/{one}/root"))?;
        assert!(root.count() < 10, "the file system of a machine is its own small directory");
        for &other in &pids[..i] {
            let shared: Vec<_> =
                private_files(one)?.intersection(&private_files(other)?).cloned().collect();
            assert!(shared.is_empty(), "{one} and {other} share {shared:?}");
            assert_ne!(namespace(one, "pid")?, namespace(other, "pid")?);
            assert_ne!(namespace(one, "user")?, namespace(other, "user")?);
            if !cgroup(one)?.contains(":/\n") {
                assert_ne!(cgroup(one)?, cgroup(other)?);
            }
        }
        let status = fs::read_to_string(format!("/proc/{one}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(&format!("{name}:")));
            line.unwrap_or_default().trim().to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
        // Number 2 of its own namespace, under a keeper.
        assert!(field("NSpid").ends_with("\t2"), "{}", field("NSpid"));
    }
    for line in [
        "head -c 16 /dev/urandom | od -An -tx1",
        "python3 -c 'import os; print(os.getrandom(16).hex())'",
        "hostname",
        "cat /etc/machine-id",
        "cat /proc/sys/kernel/random/boot_id",
    ] {
        let said = family.iter().map(|s| s.output(line)).collect::<Result<BTreeSet<_>>>()?;
        assert_eq!(said.len(), family.len(), "{line}: {said:?}");
    }
    Ok(())
}

#[test]
fn a_paused_parent_stays_paused_and_its_children_run() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let parent = client.base()?;
    parent.output("echo kept > /dev/shm/file")?;
    client.post(&parent.path("/pause"), &json!(null))?;
    let children = parent.fork(2)?;
    assert_eq!(parent.status()?, "paused");
    for child in &children {
        assert_eq!(child.output("cat /dev/shm/file")?, "kept\n");
    }
    client.post(&parent.path("/resume"), &json!(null))?;
    assert_eq!(parent.output("cat /dev/shm/file")?, "kept\n");
    Ok(())
}

#[test]
fn many_children_come_in_order_and_a_chain_of_forks_goes_deep() -> Result<()> {
    let server = forking(&["--max-sandboxes", "64"])?;
    let client = server.client();
    let parent = client.base()?;
    parent.output("echo kept > /dev/shm/file")?;
    let tree = parent.fork_tree(20)?;
    let order = tree.children.iter().map(|c| c.object["metadata"]["fork_index"].clone());
    let expected: Vec<_> = (0..20).map(|i| json!(i.to_string())).collect();
    assert_eq!(order.collect::<Vec<Value>>(), expected);
    for child in tree.children {
        assert_eq!(child.output("cat /dev/shm/file")?, "kept\n");
        child.delete()?;
    }
    let mut chain = vec![parent];
    for generation in 0..12 {
        let last = chain.last().context("a parent")?;
        last.output(&format!("echo {generation} >> /root/generations; sync"))?;
        let next = last.fork(1)?;
        chain.extend(next);
        // Ancestors go, descendants stay.
        if generation % 3 == 0 {
            chain.remove(0).delete()?;
        }
    }
    let youngest = chain.last().context("a child")?;
    youngest.output("echo 3 > /proc/sys/vm/drop_caches")?;
    assert_eq!(youngest.output("wc -l < /root/generations")?.trim(), "12");
    Ok(())
}

#[test]
fn the_last_of_a_chain_of_forks_can_still_be_kept_and_begins_another() -> Result<()> {
    let server = forking(&["--max-sandboxes", "64"])?;
    let client = server.client();
    let mut last = client.base()?;
    last.output("echo kept > /dev/shm/file")?;
    let mut length = 0;
    while let Ok(mut children) = last.fork(1) {
        last.delete()?;
        last = children.pop().context("a child")?;
        length += 1;
    }
    assert!(length > 20, "{length} generations");
    // However often it is asked, the answer is the same.
    for _ in 0..2 {
        let refused = client.post(&last.path("/fork"), &json!({}))?;
        assert_eq!(refused.status, 501, "{}", refused.text());
        assert!(refused.text().contains("hibernate this sandbox once"), "{}", refused.text());
    }
    let snapshot = last.snapshot()?;
    assert_eq!(client.thaw(&snapshot)?.fork(1)?[0].output("cat /dev/shm/file")?, "kept\n");
    last.hibernate()?;
    assert_eq!(last.fork(2)?[1].output("cat /dev/shm/file")?, "kept\n");
    Ok(())
}

#[test]
fn a_machine_that_was_copied_as_often_as_it_can_be_sleeps_and_goes_on() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let sandbox = client.base()?;
    let mut copies = 0;
    let refused = loop {
        sandbox.output("echo more >> /root/file; sync")?;
        let answer = client.post(&sandbox.path("/fork-tree"), &json!({ "count": 1 }))?;
        if answer.status != 201 {
            break answer;
        }
        copies += 1;
        let child = answer.json()["children"][0]["id"].as_str().context("an id")?.to_owned();
        assert_eq!(client.delete(&format!("/v1/sandboxes/{child}"))?.status, 204);
    };
    assert_eq!(refused.status, 501, "{}", refused.text());
    assert!(refused.text().contains("hibernate it once") && copies > 50, "{}", refused.text());
    sandbox.hibernate()?;
    let child = sandbox.fork(1)?.remove(0);
    let lines = (copies + 1).to_string();
    assert_eq!(child.output("wc -l < /root/file")?.trim(), lines);
    assert_eq!(sandbox.output("wc -l < /root/file")?.trim(), lines);
    Ok(())
}

#[test]
fn any_process_of_a_family_may_be_killed_and_the_others_live() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let (parent, bystander) = (client.base()?, client.base()?);
    let children = parent.fork(2)?;
    let grandchild = children[0].fork(1)?.remove(0);
    let machines = server.processes();

    let zygotes = server.spare_machines()?;
    assert!(!zygotes.is_empty());
    zygotes.into_iter().try_for_each(kill)?;
    for sandbox in [&parent, &bystander, &children[0], &children[1], &grandchild] {
        assert_eq!(sandbox.output("echo alive")?, "alive\n", "after the zygote's death");
    }
    kill(parent.pid()?)?;
    for sandbox in [&bystander, &children[0], &children[1], &grandchild] {
        assert_eq!(sandbox.output("echo alive")?, "alive\n", "after the parent's death");
    }
    kill(children[0].pid()?)?;
    assert_eq!(grandchild.output("echo alive")?, "alive\n", "after its parent's death");
    assert_eq!(children[1].output("echo alive")?, "alive\n", "after its sibling's death");
    // The zygote comes back by itself, and creates work meanwhile and afterwards.
    assert_eq!(client.base()?.output("echo new")?, "new\n");
    server.wait_for_zygotes()?;
    assert_eq!(client.base()?.object["boot_mode"], "fork");

    let all: Vec<u32> = server.processes().into_iter().chain(machines).collect();
    let names = server.machine_names();
    let (data, keep) = server.kill()?;
    assert!(wait_until(Duration::from_secs(10), || gone(&all)), "processes outlive their server");
    let server = Server::start(Options { data: Some(data), fork: true, ..Options::default() })?;
    assert!(server.machine_names().iter().all(|name| !names.contains(name)));
    assert_eq!(server.client().get("/v1/sandboxes")?.json(), json!([]));
    drop((server, keep));
    Ok(())
}

#[test]
fn nothing_is_left_of_forks_that_ended() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let idle = || (server.processes().len(), server.machine_dirs(), groups(&server));
    let before = idle();
    for _ in 0..5 {
        let parent = client.base()?;
        parent.output("echo x > /root/x; sync")?;
        let children = parent.fork(4)?;
        let grandchildren = children[3].fork(2)?;
        // Parents before their children and after.
        parent.delete()?;
        for sandbox in children.iter().chain(&grandchildren) {
            assert_eq!(sandbox.output("cat /root/x")?, "x\n");
            sandbox.delete()?;
        }
    }
    let same = || idle() == before;
    assert!(wait_until(Duration::from_secs(10), same), "{:?} and not {before:?}", idle());
    Ok(())
}

/// Control groups of machines of this server, and of keepers that it moved.
fn groups(server: &Server) -> usize {
    let names = server.machine_names();
    let parents = ["/sys/fs/cgroup/pandastack", "/sys/fs/cgroup/memory/pandastack"];
    parents
        .iter()
        .flat_map(|dir| fs::read_dir(Path::new(dir)).into_iter().flatten().flatten())
        .filter(|entry| names.contains(&entry.file_name().to_string_lossy().into_owned()))
        .count()
}

#[test]
fn a_host_that_cannot_fork_restores_instead_and_says_why() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let sandbox = client.base()?;
    assert_eq!(sandbox.object["boot_mode"], "snapshot");
    let answer = client.post(&sandbox.path("/fork"), &json!({}))?;
    assert_eq!(answer.status, 501, "{}", answer.text());
    assert!(!answer.error().is_empty());
    assert_eq!(client.get("/v1/stats")?.json()["forking"]["state"], "off");
    Ok(())
}

#[test]
fn a_hundred_sandboxes_answer_at_once() -> Result<()> {
    let server = forking(&["--max-sandboxes", "128"])?;
    let client = server.client();
    let idle = server.processes().len();
    let sandboxes = (0..100).map(|_| client.base()).collect::<Result<Vec<_>>>()?;
    let forked = sandboxes.iter().filter(|s| s.object["boot_mode"] == "fork").count();
    assert_eq!(forked, 100);
    for sandbox in &sandboxes {
        assert_eq!(sandbox.output("echo here")?, "here\n");
    }
    // The host itself still answers.
    let begin = std::time::Instant::now();
    assert_eq!(client.get("/healthz")?.status, 200);
    ensure!(begin.elapsed() < Duration::from_secs(2), "the server takes {:?}", begin.elapsed());
    let pss = |s: &Sandbox| -> Result<f64> {
        let metrics = client.get(&s.path("/metrics"))?.json();
        Ok(metrics["host_pss_bytes"].as_f64().context("host_pss_bytes")? / f64::from(1 << 20))
    };
    let total: f64 = sandboxes.iter().map(pss).sum::<Result<f64>>()?;
    eprintln!("100 sandboxes: {total:.0} MiB, {:.1} MiB each", total / 100.0);
    // Restored, each would be 26 MiB at least.
    ensure!(total < 100.0 * 20.0, "{total} MiB");
    for sandbox in &sandboxes {
        assert_eq!(sandbox.delete()?.status, 204);
    }
    let gone = || server.processes().len() <= idle;
    ensure!(wait_until(Duration::from_secs(10), gone), "processes stay");
    Ok(())
}

#[test]
fn trees_of_forks_lose_nothing() -> Result<()> {
    let server = forking(&["--max-sandboxes", "64"])?;
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    };
    let forks = number("PANDASTACK_STRESS_FORKS", 8) as usize;
    let seed = number("PANDASTACK_STRESS_SEED", 20_261_124);
    eprintln!("seed {seed}");
    let report = Stress { forks, depth: 6, seed }.run(&server)?;
    eprintln!("{report:?}");
    ensure!(report.verified > 0 && report.streamed > 0);
    Ok(())
}

#[test]
fn a_snapshot_is_taken_while_its_source_runs_on() -> Result<()> {
    let server = forking(&[])?;
    let client = server.client();
    let source = client.base()?;
    source.output("echo disk > /root/file; echo memory > /dev/shm/file")?;
    let take = |client: &Client, source: &Sandbox| -> Result<String> {
        let answer = client.post(&source.path("/snapshots"), &json!(null))?;
        ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
        Ok(answer.json()["id"].as_str().context("id")?.to_owned())
    };
    let first = take(&client, &source)?;
    source.output("echo later > /root/file; echo later > /dev/shm/file; sync")?;
    source.delete()?;
    let restore = |id: &str| client.create(&json!({ "template": "base", "from_snapshot": id }));
    let (one, two) = (restore(&first)?, restore(&first)?);
    assert_eq!(one.output("cat /root/file /dev/shm/file")?, "disk\nmemory\n");
    // A snapshot of a restored snapshot, with more layers and more changed pages.
    one.output("echo second >> /root/file; echo second >> /dev/shm/file; sync")?;
    let early = take(&client, &one)?;
    assert_eq!(client.delete(&format!("/v1/snapshots/{first}"))?.status, 204);
    // And one whose own origin is gone.
    let second = take(&client, &one)?;
    one.delete()?;
    assert_eq!(restore(&early)?.output("cat /dev/shm/file")?, "memory\nsecond\n");
    let three = restore(&second)?;
    three.output("echo 3 > /proc/sys/vm/drop_caches")?;
    assert_eq!(three.output("cat /root/file")?, "disk\nsecond\n");
    assert_eq!(three.output("cat /dev/shm/file")?, "memory\nsecond\n");
    assert_eq!(two.output("cat /root/file /dev/shm/file")?, "disk\nmemory\n");
    // It forks like any other.
    let child = three.fork(1)?.remove(0);
    assert_eq!(child.output("cat /dev/shm/file")?, "memory\nsecond\n");
    Ok(())
}
