//! T35: a policy that is tightened closes what it no longer allows, within 100 ms, and nothing
//! else. T44: a copy has no connection of its original.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pandastack_tests::{Sandbox, deadline, wait_until};
use serde_json::{Value, json};

use crate::guest::Probe;
use crate::stage::{PLACE, SITE_A, SITE_B, Stage};

/// Holds connections and an exchange of datagrams open, and says something in each, often.
const TALK: &str = r#"
import socket, threading, time
def tcp(address, port):
    s = socket.create_connection((address, port), 20)
    try:
        while True:
            s.sendall(b"tick\n"); s.recv(4096); time.sleep(0.02)
    except OSError as e:
        print(address, port, repr(e), flush=True)
def udp(address, port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((address, port))
    while True:
        try: s.send(b"tick")
        except OSError: pass
        time.sleep(0.02)
for target, address, port in [(tcp, "203.0.113.10", 5000), (tcp, "203.0.113.11", 5000),
                              (tcp, "198.51.100.7", 5000), (udp, "203.0.113.11", 123)]:
    threading.Thread(target=target, args=(address, port)).start()
"#;

/// A rule for each of them: site A, site B, the place, and the datagrams.
fn rules(which: &[usize]) -> Value {
    let all = [
        json!({ "host": "a.lab" }),
        json!({ "host": "b.lab" }),
        json!({ "cidr": "198.51.100.7/32" }),
        json!({ "host": "b.lab", "ports": ["123/udp"] }),
    ];
    json!({ "allow": which.iter().map(|index| all[*index].clone()).collect::<Vec<_>>() })
}

/// How much was said in each of the four so far, and which are over.
fn heard(stage: &Stage) -> Result<([u64; 4], [bool; 4])> {
    let seen = stage.lab.seen()?;
    let of = |address: &str| {
        let all = seen.connections_to(address);
        let last = all.last();
        (last.map_or(0, |c| c.received), last.is_none_or(|c| c.closed))
    };
    let (a, b, c) = (of(SITE_A), of(SITE_B), of(PLACE));
    Ok(([a.0, b.0, c.0, seen.datagrams.len() as u64], [a.1, b.1, c.1, false]))
}

fn talk(stage: &Stage, sandbox: &Sandbox) -> Result<()> {
    stage.open(sandbox, &[Probe::resolve("a.lab"), Probe::resolve("b.lab")])?;
    stage.lab.forget()?;
    sandbox.write("/root/talk.py", TALK.as_bytes())?;
    sandbox.output("python3 /root/talk.py >/root/talk.log 2>&1 </dev/null &")?;
    let all = || heard(stage).is_ok_and(|(said, over)| said.iter().all(|n| *n > 20) && !over[0]);
    ensure!(wait_until(Duration::from_secs(30), all), "they do not talk: {:?}", heard(stage)?);
    Ok(())
}

/// Whether those that are alive go on, and the others do not.
fn alive(stage: &Stage, expected: [bool; 4]) -> Result<()> {
    let (before, _) = heard(stage)?;
    let mut now = before;
    let goes_on = || {
        now = heard(stage).map_or(before, |(now, _)| now);
        (0..4).all(|i| !expected[i] || now[i] > before[i])
    };
    ensure!(wait_until(Duration::from_secs(10), goes_on), "{expected:?}: {before:?}");
    std::thread::sleep(Duration::from_millis(300));
    let (now, over) = heard(stage)?;
    for i in 0..4 {
        ensure!(expected[i] || now[i] == before[i], "{i} still talks: {before:?} {now:?}");
        ensure!(i == 3 || over[i] != expected[i], "{i}: {over:?}, and not {expected:?}");
    }
    Ok(())
}

#[test]
fn tightening_closes_what_is_no_longer_allowed_and_nothing_else() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&rules(&[0, 1, 2, 3]))?;
    talk(&stage, &sandbox)?;
    alive(&stage, [true; 4])?;

    // Site A goes. From the request on, not from its answer.
    let begin = Instant::now();
    stage.set(&sandbox, &rules(&[1, 2, 3]))?;
    let answered = begin.elapsed();
    let over = || heard(&stage).is_ok_and(|(_, over)| over[0]);
    ensure!(wait_until(Duration::from_secs(5), over), "site A is still connected");
    let closed = begin.elapsed();
    eprintln!("answered after {answered:?}, closed after {closed:?}");
    ensure!(closed < deadline(Duration::from_millis(100)), "{closed:?}");
    alive(&stage, [false, true, true, true])?;
    let told = sandbox.output("cat /root/talk.log")?;
    assert!(told.contains("203.0.113.10 5000 ConnectionResetError"), "{told}");
    let log = stage.log(&sandbox)?;
    let line = log.iter().find(|line| line["verdict"] == "close" && line["address"] == SITE_A);
    let line = line.expect("a line about its end");
    assert!(line["reason"].as_str().is_some_and(|r| r.contains("does not allow it any more")));
    assert!(line["bytes_up"].as_u64() > Some(50) && line["bytes_down"].as_u64() > Some(50));

    // A rule that takes back; a network that goes; the datagrams; everything.
    let mut denied = rules(&[1, 2, 3]);
    denied["deny"] = json!([{ "cidr": "198.51.100.0/24" }]);
    stage.set(&sandbox, &denied)?;
    alive(&stage, [false, true, false, true])?;
    stage.set(&sandbox, &rules(&[1, 2]))?;
    alive(&stage, [false, true, false, false])?;
    // What was not read cannot be read from its middle.
    stage.set(&sandbox, &json!({ "allow": [{ "host": "b.lab", "methods": ["GET"] }] }))?;
    alive(&stage, [false; 4])?;

    // And opened anew, it all works again.
    stage.set(&sandbox, &rules(&[0, 1, 2, 3]))?;
    sandbox.output("pkill -f [t]alk.py; true")?;
    talk(&stage, &sandbox)?;
    let begin = Instant::now();
    stage.set(&sandbox, &json!("none"))?;
    let over = || heard(&stage).is_ok_and(|(_, over)| over[..3] == [true; 3]);
    ensure!(wait_until(Duration::from_secs(5), over), "{:?}", heard(&stage)?);
    ensure!(begin.elapsed() < deadline(Duration::from_millis(100)), "{:?}", begin.elapsed());
    alive(&stage, [false; 4])?;
    Ok(())
}

#[test]
fn a_policy_that_only_opens_more_disturbs_nothing() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&rules(&[0, 1, 2, 3]))?;
    talk(&stage, &sandbox)?;
    for extra in ["c.lab", "d.lab", "*.example.com"] {
        let mut wider = rules(&[0, 1, 2, 3]);
        wider["allow"].as_array_mut().expect("a list").insert(0, json!({ "host": extra }));
        stage.set(&sandbox, &wider)?;
    }
    alive(&stage, [true; 4])?;
    // A policy that is refused neither.
    assert_eq!(stage.try_set(&sandbox, &json!({ "allow": [{ "host": "?" }] }))?.status, 400);
    alive(&stage, [true; 4])
}

#[test]
fn a_copy_has_no_connection_of_its_original() -> Result<()> {
    let Some(stage) = Stage::forking()? else { return Ok(()) };
    let sandbox = stage.sandbox(&rules(&[0, 1, 2, 3]))?;
    talk(&stage, &sandbox)?;
    let child = sandbox.fork(1)?.remove(0);
    let told = || child.output("cat /root/talk.log").unwrap_or_default();
    let reset = |address: &str| told().contains(&format!("{address} 5000 ConnectionResetError"));
    let all = || [SITE_A, SITE_B, PLACE].iter().all(|address| reset(address));
    ensure!(wait_until(Duration::from_secs(30), all), "its connections live: {:?}", told());
    // The original noticed nothing, and nobody else was spoken to.
    alive(&stage, [true; 4])?;
    assert_eq!(sandbox.output("cat /root/talk.log")?, "");
    let seen = stage.lab.seen()?;
    for address in [SITE_A, SITE_B, PLACE] {
        assert_eq!(seen.connections_to(address).len(), 1, "{address}");
    }
    Ok(())
}
