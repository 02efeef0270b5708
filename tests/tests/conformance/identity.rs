//! What no two sandboxes may have in common, however they came to be.
//!
//! The kernel of a copy is reseeded before anything runs in it for its new owner, so every program
//! that asks the kernel is safe, and so is everything that a program seeds when it starts. A program
//! that was running when it was copied has its own random state in its own memory; it is told by a
//! signal, and the templates' Python handles that.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Sandbox, Server, every, wait_until};

/// A line for each thing that must differ: its name and what it is here.
const NEW_PROCESS: &str = r#"python3 -c '
import os, random, socket, ssl, uuid
read = lambda path: open(path).read().strip()
print("getrandom", os.getrandom(16).hex())
print("/dev/urandom", open("/dev/urandom", "rb").read(16).hex())
print("random", random.random())
print("ssl", ssl.RAND_bytes(16).hex())
print("uuid", uuid.uuid4())
print("hostname", socket.gethostname())
print("/etc/hostname", read("/etc/hostname"))
print("/etc/machine-id", read("/etc/machine-id"))
print("boot_id", read("/proc/sys/kernel/random/boot_id"))
'"#;

/// Answers whoever asks, as often as it is asked, from the state it was started with.
const INTERPRETER: &str = r#"
import os, random, secrets, ssl
random.random(), ssl.RAND_bytes(16), secrets.token_hex(16)
while True:
    open("/dev/shm/ask").read()
    answers = {
        "getrandom": os.getrandom(16).hex(),
        "secrets": secrets.token_hex(16),
        "random": random.random(),
        "ssl": ssl.RAND_bytes(16).hex(),
    }
    with open("/dev/shm/answer", "w") as answer:
        for name, value in answers.items():
            print(name, value, file=answer)
"#;
const ASK: &str = "echo go > /dev/shm/ask; cat /dev/shm/answer";

/// Values by the name of what was asked, one per sandbox.
fn ask(sandboxes: &[Sandbox], line: &str) -> Result<Vec<(String, Vec<String>)>> {
    let answers = sandboxes.iter().map(|s| s.output(line)).collect::<Result<Vec<_>>>()?;
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for answer in &answers {
        for line in answer.lines() {
            let (name, value) = line.split_once(' ').context("a name and a value")?;
            ensure!(!value.trim().is_empty(), "{name} is empty");
            match found.iter_mut().find(|(known, _)| known == name) {
                Some((_, values)) => values.push(value.to_owned()),
                None => found.push((name.to_owned(), vec![value.to_owned()])),
            }
        }
    }
    ensure!(
        !found.is_empty() && found.iter().all(|(_, v)| v.len() == sandboxes.len()),
        "{found:?}"
    );
    Ok(found)
}

fn all_differ(values: &[String]) -> bool {
    values.iter().collect::<BTreeSet<_>>().len() == values.len()
}

#[test]
fn no_two_sandboxes_share_an_identity_or_a_random_number() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    let snapshot = source.snapshot()?;
    let mut family = vec![client.base()?, client.thaw(&snapshot)?, client.thaw(&snapshot)?];
    family.extend(source.fork(8)?);
    let grandchildren = family[3].fork(2)?;
    family.extend(grandchildren);
    family.push(source);
    for (name, values) in ask(&family, NEW_PROCESS)? {
        ensure!(all_differ(&values), "{name}: {values:?}");
    }
    // Whatever looks a host up by its name finds this one.
    for sandbox in &family {
        sandbox.output("getent hosts $(hostname) && test $(hostname) = $(cat /etc/hostname)")?;
    }
    Ok(())
}

#[test]
fn a_program_that_was_running_gets_other_randomness_from_its_kernel() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    source.write("/root/interpreter.py", INTERPRETER.as_bytes())?;
    source.output(
        "mkfifo /dev/shm/ask /dev/shm/answer; \
         setsid python3 /root/interpreter.py >/dev/null 2>&1 </dev/null &",
    )?;
    ask(std::slice::from_ref(&source), ASK)?;
    let snapshot = source.snapshot()?;
    let mut family = source.fork(3)?;
    family.push(client.thaw(&snapshot)?);
    family.push(source);
    for (name, values) in ask(&family, ASK)? {
        ensure!(all_differ(&values), "{name} of a running program: {values:?}");
    }
    Ok(())
}

/// Any program can know, and one that does not want to know notices nothing.
#[test]
fn every_program_of_a_copy_is_told_and_none_of_its_original() -> Result<()> {
    let server = Server::forking()?;
    let source = server.client().base()?;
    let listener = every("0.1", "trap \"date > /dev/shm/told\" URG; touch /dev/shm/ready");
    source.output(&format!(
        "setsid {listener} >/dev/null 2>&1 </dev/null & \
         setsid sleep 1000 >/dev/null 2>&1 </dev/null & \
         until [ -e /dev/shm/ready ]; do sleep 0.1; done",
    ))?;
    let child = source.fork(1)?.remove(0);
    source.pause()?;
    source.resume()?;
    let told = |sandbox: &Sandbox| sandbox.output("cat /dev/shm/told").is_ok();
    ensure!(
        wait_until(Duration::from_secs(20), || told(&child)),
        "the copy's program was not told"
    );
    ensure!(!told(&source), "the original's was");
    child.output("pgrep -f '^sleep 1000'").map(drop)
}
