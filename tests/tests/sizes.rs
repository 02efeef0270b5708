//! Sandboxes of a size of their own: prepared once, on first use, for everybody who waits, and from
//! then on as fast as those of the template's own size.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::{Client, Options, Sandbox, Server, deadline, seconds, wait_until};
use serde_json::{Value, json};

/// The operator's limits in these tests.
const LIMITS: [&str; 8] = [
    "--max-cpu",
    "2",
    "--max-memory",
    "1024",
    "--max-disk",
    "16384",
    // So that what earlier runs prepared does not pile up.
    "--size-classes",
    "1",
];

fn server() -> Result<Server> {
    let args = LIMITS.map(str::to_owned).to_vec();
    Server::start(Options { fork: true, args, ..Options::default() })
}

/// What the server says of the sizes of `base`.
fn sizes(client: &Client) -> Result<Vec<Value>> {
    let view = client.get("/v1/templates/base")?.json();
    view["sizes"].as_array().cloned().context("a template has sizes")
}

/// What it says of one.
fn size_of(client: &Client, class: &Value) -> Option<Value> {
    let same = |known: &Value| {
        ["cpu", "memory_mb", "disk_mb"].iter().all(|field| known[field] == class[field])
    };
    sizes(client).ok()?.into_iter().find(same)
}

/// A size that nobody has asked for in this data directory.
fn new_class(client: &Client) -> Result<Value> {
    let free = (10..64).map(|step| {
        let disk_mb = step * 256;
        json!({ "template": "base", "cpu": 2, "memory_mb": 768, "disk_mb": disk_mb, "ttl_seconds": seconds(600) })
    });
    free.into_iter().find(|class| size_of(client, class).is_none()).context("no size is free")
}

/// Creates as published clients do: again, when the server says so.
fn create_as_told(client: &Client, class: &Value) -> Result<Sandbox> {
    let end = Instant::now() + deadline(Duration::from_secs(240));
    loop {
        let answer = client.post("/v1/sandboxes", class)?;
        if answer.status == 201 {
            return client.made(&answer);
        }
        ensure!(answer.status == 503, "create answered {} {}", answer.status, answer.text());
        ensure!(answer.error().contains("is being prepared"), "{}", answer.text());
        let pause = answer.retry_after.clone().context("a 503 says when")?.parse()?;
        ensure!(Instant::now() < end, "it is never ready: {}", answer.text());
        thread::sleep(Duration::from_secs(pause));
    }
}

/// Begins a create and goes away once the server works on it.
fn begin_and_leave(server: &Server, class: &Value) -> Result<()> {
    let client = server.client();
    let address = server.url().trim_start_matches("http://");
    let key = std::fs::read_to_string(server.data().join("api-key"))?;
    let body = class.to_string();
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST /v1/sandboxes HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        key.trim(),
        body.len()
    )?;
    let begun = || size_of(&client, class).is_some_and(|known| known["state"] == "baking");
    ensure!(wait_until(Duration::from_secs(20), begun), "nothing is baked: {:?}", sizes(&client)?);
    Ok(())
}

/// The shortest creates of two kinds, in turns: what else the host does slows both down.
fn quickest(client: &Client, kinds: [&Value; 2]) -> Result<[Duration; 2]> {
    let mut best = [Duration::MAX; 2];
    for _ in 0..8 {
        for (kind, best) in kinds.into_iter().zip(&mut best) {
            let begin = Instant::now();
            let sandbox = client.create(kind)?;
            *best = begin.elapsed().min(*best);
            sandbox.delete()?;
        }
    }
    Ok(best)
}

/// The guest has what was asked for, and the server says so.
fn assert_size(sandbox: &Sandbox, class: &Value) -> Result<()> {
    for field in ["cpu", "memory_mb", "disk_mb"] {
        ensure!(sandbox.object[field] == class[field], "{field}: {}", sandbox.object);
    }
    let number = |line: &str| -> Result<u64> { Ok(sandbox.output(line)?.trim().parse()?) };
    ensure!(number("nproc")? == 2, "{} processors", number("nproc")?);
    let memory_kb = number("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")?;
    ensure!((600 << 10..=768 << 10).contains(&memory_kb), "{memory_kb} kB of memory");
    let disk = class["disk_mb"].as_u64().context("a number")?;
    let disk_mb = number("df -m --output=size / | tail -n 1")?;
    ensure!((disk * 95 / 100..=disk).contains(&disk_mb), "{disk_mb} MiB of {disk} of disk");
    Ok(())
}

/// The disk is as large as it says and no larger, and its end is as good as its beginning.
fn assert_disk_fills(sandbox: &Sandbox, class: &Value) -> Result<()> {
    let disk = class["disk_mb"].as_u64().context("a number")?;
    let most = disk * 95 / 100 - 64;
    sandbox.output(&format!("fallocate -l {most}M /large"))?;
    let last = most - 1;
    sandbox.output(&format!("echo the end | dd of=/large bs=1M seek={last} conv=notrunc"))?;
    let beyond = sandbox.exec("fallocate -l 512M /more")?;
    let said = beyond["stderr"].as_str().unwrap_or_default();
    ensure!(beyond["exit_code"] != 0 && said.contains("No space left"), "{beyond}");
    sandbox.output("rm -f /more; sync")?;
    assert_end_is_there(sandbox, class)
}

fn assert_end_is_there(sandbox: &Sandbox, class: &Value) -> Result<()> {
    let last = class["disk_mb"].as_u64().context("a number")? * 95 / 100 - 65;
    let end = sandbox.output(&format!("dd if=/large bs=1M skip={last} count=1 | head -c 8"))?;
    ensure!(end == "the end\n", "{end:?}");
    Ok(())
}

#[test]
fn a_size_is_prepared_once_and_is_then_as_fast_as_the_default() -> Result<()> {
    let server = server()?;
    server.wait_for_zygotes()?;
    let client = server.client();
    let class = new_class(&client)?;

    // Who begins it leaves, two others wait for the same.
    begin_and_leave(&server, &class)?;
    let known = size_of(&client, &class).context("it is listed")?;
    ensure!(known["step"].is_string() && known["elapsed_ms"].is_u64(), "{known}");
    let waiting = [(); 2].map(|()| {
        let (client, class) = (client.clone(), class.clone());
        thread::spawn(move || create_as_told(&client, &class))
    });
    let mut made = Vec::new();
    for waiter in waiting {
        made.push(waiter.join().expect("no panic")?);
    }
    let known = size_of(&client, &class).context("it is listed")?;
    ensure!(known["state"] == "baked" && known["step"].is_null(), "{known}");
    let begun = server.log().matches("a size class is baked now").count();
    ensure!(begun == 1, "{begun} bakes");
    for sandbox in &made {
        assert_size(sandbox, &class)?;
    }
    let Some(sandbox) = made.pop() else { bail!("there were two") };
    assert_disk_fills(&sandbox, &class)?;
    keeps_its_size(&client, sandbox, &class)?;
    made.into_iter().try_for_each(|other| other.delete().map(drop))?;

    // There is a zygote of it soon, as of the templates' own sizes.
    let wanted = 1 + built(&client)?;
    let there = || client.get("/v1/stats").is_ok_and(|a| a.json()["zygotes"] == wanted);
    let stats = || client.get("/v1/stats").map(|a| a.text()).unwrap_or_default();
    ensure!(wait_until(Duration::from_secs(120), there), "no zygote of it: {}", stats());
    let [own, other] = quickest(&client, [&json!({ "template": "base" }), &class])?;
    eprintln!("the template's own size {own:?}, another {other:?}");
    ensure!(other <= own * 2, "{other:?} is more than twice {own:?}");
    Ok(())
}

/// Templates whose own size is built.
fn built(client: &Client) -> Result<usize> {
    let templates = client.get("/v1/templates")?.json();
    Ok(templates.as_array().into_iter().flatten().filter(|t| t["built"] == true).count())
}

/// Copies and files of a sandbox have its size, and what is at the end of its disk.
fn keeps_its_size(client: &Client, sandbox: Sandbox, class: &Value) -> Result<()> {
    let child = sandbox.fork(1)?.pop().context("one child")?;
    let snapshot = sandbox.snapshot()?;
    sandbox.hibernate()?;
    sandbox.wake()?;
    let thawed = client.thaw(&snapshot)?;
    for one in [&child, &thawed, &sandbox] {
        assert_size(one, class)?;
        assert_end_is_there(one, class)?;
        one.delete()?;
    }
    ensure!(client.delete(&format!("/v1/snapshots/{snapshot}"))?.status == 204, "not deleted");
    Ok(())
}

#[test]
fn what_the_operator_does_not_allow_is_refused_with_the_limits() -> Result<()> {
    let server = server()?;
    let client = server.client();
    let before = sizes(&client)?;
    for (member, number, limits) in [
        ("cpu", json!(3), "cpu must be 1 to 2, not 3"),
        ("memory_mb", json!(2048), "memory_mb must be 128 to 1024, not 2048"),
        ("disk_mb", json!(0), "disk_mb must be 2048 to 16384, not 0"),
        ("disk_mb", json!(-5), "disk_mb must be 2048 to 16384, not -5"),
        ("disk_mb", json!(1024), "disk_mb must be 2048 to 16384, not 1024"),
        ("disk_mb", json!(16385), "disk_mb must be 2048 to 16384, not 16385"),
        ("disk_gb", json!(17), "disk_mb must be 2048 to 16384, not 17408"),
        ("disk_gb", json!(i64::MAX), "disk_mb must be 2048 to 16384"),
    ] {
        let answer =
            client.post("/v1/sandboxes", &json!({ "template": "base", member: number }))?;
        ensure!(answer.status == 400, "{member}: {}", answer.text());
        ensure!(answer.error().starts_with(limits), "{member}: {}", answer.text());
    }
    for wrong in [json!("4096"), json!(4096.5), json!([4096])] {
        let answer =
            client.post("/v1/sandboxes", &json!({ "template": "base", "disk_mb": wrong }))?;
        ensure!(answer.status == 400, "{wrong}: {}", answer.text());
    }
    let listed = |sizes: &[Value]| sizes.iter().filter(|s| s["state"] == "baking").count();
    ensure!(listed(&sizes(&client)?) == listed(&before), "something is baked");
    ensure!(client.get("/v1/sandboxes")?.json() == json!([]), "something exists");
    let own = client.base()?;
    ensure!(own.object["disk_mb"] == 2048, "{}", own.object);
    Ok(())
}
