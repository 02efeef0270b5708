//! Random cycles of write, pause, resume, hibernate, snapshot, restore and fork, after each of which the guest
//! must still hold, in memory and on disk, exactly what was written to it.
//!
//! ```text
//!   write ─▶ [pause ─▶ resume] ─▶ fork      ─▶ go on in the child, or in the parent
//!                                 snapshot  ─▶ go on in a restored one, or in the origin
//! ```
//!
//! The model is the bytes of two files, one in the guest's memory and one on its disk, kept here;
//! they are compared by checksum. The one on disk is read with the page cache dropped. Sandboxes
//! that are left behind are looked at once more before they go: nothing that happened to their
//! relatives may have reached them.
//!
//! `PANDASTACK_TEST_CYCLES` and `PANDASTACK_TEST_SEED` say how many, and which (1, so that what
//! fails is found again; 0 for new ones): few, since the model
//! (`tests/tests/model`) walks on as well, with smaller contents.
//!
//! What costs milliseconds is also done many times in a row, which nothing else does:
//! `PANDASTACK_TEST_PAUSES` pauses of one sandbox. For hibernations see `tests/tests/conformance`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Client, Random, Sandbox, Server, number, open_descriptors};

/// Bytes of each file.
const LENGTH: usize = 2 << 20;
/// Most bytes of one write.
const PIECE: usize = 128 << 10;
/// Writes begin at a multiple of this: dd(1) counts in blocks.
const BLOCK: usize = 512;
const FILES: [&str; 2] = ["/dev/shm/file", "/root/file"];

#[test]
fn nothing_is_lost_in_random_cycles() -> Result<()> {
    let server = Server::forking()?;
    let cycles = number("PANDASTACK_TEST_CYCLES", 10);
    let seed = match number("PANDASTACK_TEST_SEED", 1) {
        0 => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        seed => seed,
    };
    eprintln!("PANDASTACK_TEST_SEED={seed} PANDASTACK_TEST_CYCLES={cycles}");
    let mut walk = Walk::begin(&server.client(), seed)?;
    for cycle in 0..cycles {
        let did = walk.cycle().with_context(|| format!("cycle {cycle} of seed {seed}"))?;
        eprintln!("cycle {cycle}: {did}");
    }
    walk.end().with_context(|| format!("after all cycles of seed {seed}"))
}

/// A command after each pause, and a process that runs through all of them.
#[test]
fn one_sandbox_is_paused_and_resumed_again_and_again() -> Result<()> {
    let pauses = number("PANDASTACK_TEST_PAUSES", 200_u32);
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    let (machine, descriptors) = (sandbox.pid()?, open_descriptors(server.pid()));
    let witness = "(setsid sleep 100000 >/dev/null 2>&1 </dev/null & echo $!)";
    let witness = sandbox.output(witness)?;
    for pause in 0..pauses {
        let step = || format!("pause {pause} of {pauses}");
        sandbox.pause().with_context(step)?;
        sandbox.resume().with_context(step)?;
        // What was written after the pause before is there.
        let line = format!("cat /dev/shm/pause 2>/dev/null; echo {pause} > /dev/shm/pause");
        let expected = pause.checked_sub(1).map(|last| format!("{last}\n")).unwrap_or_default();
        let output = sandbox.output(&line).with_context(step)?;
        ensure!(output == expected, "{}: {output:?}, not {expected:?}", step());
    }
    sandbox.output(&format!("kill -0 {}", witness.trim()))?;
    assert_eq!(sandbox.pid()?, machine, "another machine answers");
    let more = open_descriptors(server.pid()).saturating_sub(descriptors);
    // A connection of the client's that is kept open, or two.
    ensure!(more < 10, "{more} descriptors are left of {pauses} pauses");
    Ok(())
}

/// A sandbox and what is in its files.
#[derive(Clone)]
struct Node {
    sandbox: Sandbox,
    files: [Vec<u8>; 2],
}

struct Walk {
    client: Client,
    random: Random,
    here: Node,
    /// A relative that was left behind and lives on.
    left: Option<Node>,
}

impl Walk {
    fn begin(client: &Client, seed: u64) -> Result<Self> {
        let (sandbox, mut random) = (client.base()?, Random::new(seed));
        let files = [random.bytes(LENGTH), random.bytes(LENGTH)];
        for (path, content) in FILES.iter().zip(&files) {
            sandbox.write(path, content)?;
        }
        let here = Node { sandbox, files };
        here.check("at the beginning")?;
        Ok(Self { client: client.clone(), random, here, left: None })
    }

    /// One cycle; what was done in it.
    fn cycle(&mut self) -> Result<String> {
        let mut did = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            self.here.write(&mut self.random)?;
        }
        did.push("write".to_owned());
        let pause = self.random.one_in(2);
        // A copy of a paused one is another path than one of a running one.
        let (before, during) = (pause && self.random.one_in(2), pause);
        if during {
            self.here.sandbox.pause()?;
            did.push("pause".to_owned());
        }
        if before {
            self.here.sandbox.resume()?;
            did.push("resume".to_owned());
        }
        if !during && self.random.one_in(4) {
            self.here.sandbox.hibernate()?;
            did.push("hibernate".to_owned());
        }
        let copy = match self.random.below(5) {
            0 | 1 => {
                did.push("fork".to_owned());
                Some(self.here.sandbox.fork(1)?.remove(0))
            }
            2 | 3 => {
                did.push("snapshot, restore".to_owned());
                let snapshot = self.here.sandbox.snapshot()?;
                let copy = self.client.thaw(&snapshot)?;
                self.client.delete(&format!("/v1/snapshots/{snapshot}"))?;
                Some(copy)
            }
            _ => None,
        };
        if during && !before {
            self.here.sandbox.resume()?;
            did.push("resume".to_owned());
        }
        self.here.check("afterwards")?;
        if let Some(sandbox) = copy {
            let mut copy = Node { sandbox, files: self.here.files.clone() };
            copy.check("in the copy")?;
            if self.random.one_in(2) {
                did.push("go on in the copy".to_owned());
                std::mem::swap(&mut copy, &mut self.here);
            }
            self.leave(copy)?;
        }
        Ok(did.join(", "))
    }

    /// Leaves a relative behind: it changes by itself, and must be as it was left when it goes.
    fn leave(&mut self, mut node: Node) -> Result<()> {
        node.write(&mut self.random)?;
        if let Some(old) = self.left.replace(node) {
            old.check("in a relative that was left behind")?;
            let deleted = old.sandbox.delete()?;
            ensure!(deleted.status == 204, "delete answered {}", deleted.text());
        }
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.here.check("in the last one")?;
        self.left.map_or(Ok(()), |node| node.check("in a relative that was left behind"))
    }
}

impl Node {
    /// Changes a piece of one of the files.
    fn write(&mut self, random: &mut Random) -> Result<()> {
        let which = random.below(FILES.len());
        let piece = {
            let length = 1 + random.below(PIECE);
            random.bytes(length)
        };
        let at = random.below((LENGTH - piece.len()) / BLOCK) * BLOCK;
        self.files[which][at..at + piece.len()].copy_from_slice(&piece);
        self.sandbox.write("/dev/shm/piece", &piece)?;
        let flush = ["true", "sync"][random.below(2)];
        self.sandbox.output(&format!(
            "dd if=/dev/shm/piece of={} bs={BLOCK} seek={} conv=notrunc status=none; {flush}",
            FILES[which],
            at / BLOCK
        ))?;
        Ok(())
    }

    /// Compares both files with the model, and asks the kernel whether it saw any damage.
    fn check(&self, when: &str) -> Result<()> {
        let line = format!(
            "sync; echo 3 > /proc/sys/vm/drop_caches; cksum < {}; cksum < {}; \
             dmesg | grep -iE 'EXT4-fs (error|warning)|I/O error|BUG:|Oops:|rcu.*stall' || true",
            FILES[0], FILES[1]
        );
        let output = self.sandbox.output(&line)?;
        let expected: String =
            self.files.iter().map(|file| format!("{} {LENGTH}\n", cksum(file))).collect();
        ensure!(output == expected, "{when}: {output:?} and not {expected:?}");
        Ok(())
    }
}

/// The checksum of cksum(1): a CRC of the bytes and then of their number, lowest byte first.
fn cksum(content: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x04C1_1DB7;
    let table: Vec<u32> = (0..256_u32)
        .map(|byte| {
            (0..8)
                .fold(byte << 24, |crc, _| (crc << 1) ^ if crc >> 31 == 1 { POLYNOMIAL } else { 0 })
        })
        .collect();
    let length = content.len().to_le_bytes();
    let significant = length.len() - content.len().leading_zeros() as usize / 8;
    let bytes = content.iter().chain(&length[..significant]);
    !bytes.fold(0, |crc, byte| (crc << 8) ^ table[usize::from((crc >> 24) as u8 ^ byte)])
}

#[test]
fn checksums_are_those_of_the_guest() {
    // From cksum(1).
    assert_eq!(cksum(b""), 4_294_967_295);
    assert_eq!(cksum(b"123456789"), 930_766_865);
}
