//! Volumes with real guests: what is on them outlives sandboxes, machines and servers, readers
//! share, writers are alone, and a copy stays its owner's.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use pandastack_tests::{Client, Options, Sandbox, Server, engine, kill, skip, wait_until};
use serde_json::{Value, json};

fn server() -> Result<Server> {
    serve(0, None)
}

/// A server on a directory, whose sandboxes outlive it for so many seconds if it is killed.
fn serve(orphan_grace: u64, data: Option<PathBuf>) -> Result<Server> {
    Server::start(Options { fork: true, orphan_grace, data, ..Options::default() })
}

fn volume(client: &Client, name: &str, size_mb: u64) -> Result<Value> {
    let answer = client.post("/v1/volumes", &json!({ "name": name, "size_mb": size_mb }))?;
    ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
    Ok(answer.json())
}

fn with(name: &str, read_only: bool) -> Value {
    let volumes = json!([{ "name": name, "read_only": read_only }]);
    json!({ "template": "base", "persistent": true, "volumes": volumes })
}

fn writer(client: &Client, name: &str) -> Result<Sandbox> {
    client.create(&with(name, false))
}

fn delete(client: &Client, name: &str) -> Result<u16> {
    Ok(client.delete(&format!("/v1/volumes/{name}"))?.status)
}

#[test]
fn what_is_on_a_volume_outlives_its_sandboxes() -> Result<()> {
    let server = server()?;
    let client = server.client();
    let made = volume(&client, "data", 64)?;
    assert_eq!((&made["name"], &made["size_mb"]), (&json!("data"), &json!(64)));
    assert!(made["size_bytes"].as_u64().is_some_and(|bytes| bytes < 8 << 20), "{made}");
    for (body, status) in [
        (json!({ "name": "data" }), 409),
        (json!({ "name": "../data" }), 400),
        (json!({ "size_mb": 64 }), 400),
        (json!({ "name": "small", "size_mb": 0 }), 400),
        (json!({ "name": "large", "size_mb": 65_537 }), 400),
    ] {
        assert_eq!(client.post("/v1/volumes", &body)?.status, status, "{body}");
    }
    assert_eq!(client.get("/v1/volumes")?.json().as_array().map(Vec::len), Some(1));
    for path in ["/v1/volumes/none", "/v1/volumes/%2e%2e%2fdata"] {
        assert_eq!(client.get(path)?.status, 404, "{path}");
        assert_eq!(client.delete(path)?.status, 404, "{path}");
    }
    let refused = |body: &Value| client.post("/v1/sandboxes", body).map(|answer| answer.status);
    assert_eq!(refused(&with("none", false))?, 404);
    let twice = json!({ "template": "base", "volumes": [{ "name": "data" }, { "name": "data" }] });
    assert_eq!(refused(&twice)?, 400);

    let first = writer(&client, "data")?;
    assert_eq!(first.object["volumes"], json!([{ "name": "data", "read_only": false }]));
    assert_eq!(
        first
            .output("findmnt -no FSTYPE /volumes/data || stat -fc %T /volumes/data")?
            .lines()
            .count(),
        1
    );
    first.output("head -c 20000000 /dev/urandom > /volumes/data/blob")?;
    let sum = first.output("sha256sum < /volumes/data/blob; echo kept > /volumes/data/file")?;
    for body in [with("data", false), with("data", true)] {
        let answer = client.post("/v1/sandboxes", &body)?;
        assert_eq!(answer.status, 409, "{}", answer.text());
        assert!(answer.error().contains(&first.id), "{}", answer.text());
    }
    assert_eq!(delete(&client, "data")?, 409);
    // Not synced: the end of a sandbox is in good order.
    assert_eq!(first.delete()?.status, 204);

    let readers = [client.create(&with("data", true))?, client.create(&with("data", true))?];
    for reader in &readers {
        assert_eq!(reader.output("sha256sum < /volumes/data/blob")?, sum);
        assert_ne!(reader.exec("echo x > /volumes/data/file")?["exit_code"], 0);
        // What root does to its own view reaches nobody.
        reader.exec("mount -o remount,rw /volumes/data && echo x > /volumes/data/file; sync")?;
    }
    assert_eq!(refused(&with("data", false))?, 409);
    for reader in readers {
        reader.delete()?;
    }
    let last = writer(&client, "data")?;
    assert_eq!(
        last.output("cat /volumes/data/file; sha256sum < /volumes/data/blob")?,
        format!("kept\n{sum}")
    );
    last.delete()?;
    assert_eq!(delete(&client, "data")?, 204);
    assert_eq!(refused(&with("data", false))?, 404);
    server.stop()?;
    Ok(())
}

#[test]
fn sleep_and_crashes_take_nothing_from_a_volume() -> Result<()> {
    let server = server()?;
    let client = server.client();
    volume(&client, "data", 64)?;
    let sleeper = writer(&client, "data")?;
    sleeper
        .output("echo before > /volumes/data/file; (cd /volumes/data; sleep 1000) &>/dev/null &")?;
    sleeper.hibernate()?;
    assert_eq!(delete(&client, "data")?, 409);
    let (data, keep) = server.kill()?;

    let restart =
        |data| Server::start(Options { fork: true, data: Some(data), ..Options::default() });
    let server = restart(data)?;
    let client = server.client();
    let sleeper = sleeper.under(&client);
    assert_eq!(client.post("/v1/sandboxes", &with("data", true))?.status, 409, "it sleeps on");
    assert_eq!(
        sleeper.output("cat /volumes/data/file; echo after >> /volumes/data/file; sync")?,
        "before\n"
    );
    sleeper.hibernate()?;
    sleeper.wake()?;
    assert_eq!(
        sleeper.output("echo again >> /volumes/data/file; sync; cat /volumes/data/file")?,
        "before\nafter\nagain\n"
    );
    kill(sleeper.pid()?)?;
    assert_eq!(sleeper.end_reason()?, "machine_died");

    let next = writer(&client, "data")?;
    assert_eq!(
        next.output("echo last >> /volumes/data/file; sync; cat /volumes/data/file")?,
        "before\nafter\nagain\nlast\n"
    );
    let (data, keep_too) = server.kill()?;
    let server = restart(data)?;
    let client = server.client();
    // Freed by the restart, and whole.
    let reader = client.create(&with("data", true))?;
    assert_eq!(reader.output("tail -n 1 /volumes/data/file")?, "last\n");
    assert!(wait_until(Duration::from_secs(5), || reader.delete().is_ok_and(|a| a.status == 204)));
    assert_eq!(delete(&client, "data")?, 204);
    server.stop()?;
    drop((keep, keep_too));
    Ok(())
}

#[test]
fn forks_and_snapshots_have_copies() -> Result<()> {
    let server = server()?;
    let client = server.client();
    volume(&client, "data", 64)?;
    let parent = writer(&client, "data")?;
    let append = |sandbox: &Sandbox, word: &str| {
        sandbox.output(&format!("echo {word} >> /volumes/data/file; sync; cat /volumes/data/file"))
    };
    append(&parent, "shared")?;
    let children = parent.fork(2)?;
    let copy = json!([{ "name": "data", "read_only": false, "clone": true }]);
    for (child, word) in children.iter().zip(["one", "two"]) {
        assert_eq!(child.object["volumes"], copy);
        assert_eq!(append(child, word)?, format!("shared\n{word}\n"));
    }
    assert_eq!(append(&parent, "parent")?, "shared\nparent\n");
    let grandchild = children[0].fork(1)?.remove(0);
    assert_eq!(append(&grandchild, "grand")?, "shared\none\ngrand\n");

    let snapshot = parent.snapshot()?;
    append(&parent, "later")?;
    // A copy sleeps and wakes with what it wrote.
    children[1].hibernate()?;
    assert_eq!(append(&children[1], "woken")?, "shared\ntwo\nwoken\n");
    for child in children.iter().chain([&grandchild, &parent]) {
        assert_eq!(child.delete()?.status, 204);
    }
    let reader = client.create(&with("data", true))?;
    assert_eq!(reader.output("cat /volumes/data/file")?, "shared\nparent\nlater\n");
    let child = reader.fork(1)?.remove(0);
    assert_eq!(reader.delete()?.status, 204);
    // Nobody holds the volume: copies do not need it.
    assert_eq!(delete(&client, "data")?, 204);
    assert_eq!(child.output("cat /volumes/data/file")?, "shared\nparent\nlater\n");
    let made = client.create(&json!({ "from_snapshot": snapshot }))?;
    assert_eq!(made.object["volumes"], copy);
    assert_eq!(append(&made, "made")?, "shared\nparent\nmade\n");
    let both = json!({ "from_snapshot": snapshot, "volumes": [{ "name": "data" }] });
    assert_eq!(client.post("/v1/sandboxes", &both)?.status, 400);
    server.stop()?;
    Ok(())
}

#[test]
fn a_sandbox_has_up_to_eight_volumes() -> Result<()> {
    let server = server()?;
    let client = server.client();
    let names: Vec<String> = (0..9).map(|number| format!("v{number}")).collect();
    for name in &names {
        volume(&client, name, 4)?;
    }
    let of = |names: &[String]| {
        let volumes: Vec<_> = names.iter().map(|name| json!({ "name": name })).collect();
        json!({ "template": "base", "persistent": true, "volumes": volumes })
    };
    assert_eq!(client.post("/v1/sandboxes", &of(&names))?.status, 400);
    let sandbox = client.create(&of(&names[..8]))?;
    sandbox.output("for v in /volumes/*; do echo ${v##*/} > $v/file; done")?;
    let listing = "cd /volumes; for v in *; do echo $v $(cat $v/*file*); done";
    let each = |what: &dyn Fn(&String) -> String| names[..8].iter().map(what).collect::<String>();
    let found = each(&|name| format!("{name} {name}\n"));
    assert_eq!(sandbox.output(listing)?, found);

    let child = sandbox.fork(1)?.remove(0);
    child.output("for v in /volumes/*; do echo child > $v/other-file; done")?;
    sandbox.hibernate()?;
    assert_eq!(sandbox.output(listing)?, found);
    assert_eq!(child.output(listing)?, each(&|name| format!("{name} {name} child\n")));
    assert_eq!((sandbox.delete()?.status, child.delete()?.status), (204, 204));
    let last = client.create(&with(&names[7], true))?;
    assert_eq!(last.output(listing)?, "v7 v7\n");
    last.delete()?;
    server.stop()?;
    Ok(())
}

#[test]
fn a_sandbox_keeps_its_volumes_under_the_next_server() -> Result<()> {
    if engine() != "qemu" {
        return skip("adoption: machines of this engine end with their server");
    }
    let server = serve(600, None)?;
    let client = server.client();
    volume(&client, "data", 1)?;
    volume(&client, "shared", 3)?;
    server.wait_for_zygotes()?;
    let volumes = json!([{ "name": "data" }, { "name": "shared", "read_only": true }]);
    let sandbox = client.create(&json!({ "template": "base", "volumes": volumes }))?;
    // Layers that the first server made are found by the next one.
    sandbox.output("echo one > /volumes/data/one; sync")?;
    let child = sandbox.fork(1)?.remove(0);
    sandbox.output("echo two > /volumes/data/two")?;

    let (data, keep) = server.kill()?;
    let server = serve(600, Some(data))?;
    let client = server.client();
    let (sandbox, child) = (sandbox.under(&client), child.under(&client));
    assert_eq!(sandbox.output("cat /volumes/data/[ot]*; ls /volumes")?, "one\ntwo\ndata\nshared\n");
    assert_eq!(child.output("ls /volumes/data | grep -v lost")?, "one\n");
    let answer = client.post("/v1/sandboxes", &with("data", false))?;
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert_eq!((delete(&client, "data")?, delete(&client, "shared")?), (409, 409));

    server.wait_for_zygotes()?;
    sandbox.output("echo three > /volumes/data/three; sync")?;
    let copy = sandbox.fork(1)?.remove(0);
    assert_eq!(copy.output("cat /volumes/data/three")?, "three\n");
    copy.output("echo other > /volumes/data/three; sync")?;
    sandbox.hibernate()?;
    assert_eq!(sandbox.output("cat /volumes/data/three")?, "three\n");
    assert_eq!(sandbox.delete()?.status, 204);
    let last = writer(&client, "data")?;
    assert_eq!(last.output("cat /volumes/data/[ot]*")?, "one\nthree\ntwo\n");
    for sandbox in [last, child, copy] {
        assert_eq!(sandbox.delete()?.status, 204);
    }
    assert_eq!((delete(&client, "data")?, delete(&client, "shared")?), (204, 204));
    server.stop()?;
    drop(keep);
    Ok(())
}
