//! Forks in trees, with everything checked that a fork could lose.
//!
//! Every machine of a tree has a list of what it and its ancestors wrote, to the disk and to
//! memory, before each fork that led to it. From time to time, and at the end, a machine drops its
//! caches and has to read all of it back, and must not find anything that a sibling wrote. In
//! between, machines are deleted and their processes killed at random, while one more machine
//! streams numbers without a gap and is forked as well.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{Client, Sandbox, Server, wait_until};

/// Guest memory of the machines, MiB: enough for the files kept in it, and many fit on a host.
const MEMORY_MB: u32 = 256;
/// Machines alive at a time.
const MAX_ALIVE: usize = 12;

/// What to do.
#[derive(Clone, Debug)]
pub struct Stress {
    /// Copies to make in all.
    pub forks: usize,
    /// Generations below a root.
    pub depth: usize,
    /// Decides everything that is random.
    pub seed: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Copies made.
    pub forks: usize,
    /// Deepest generation reached.
    pub deepest: usize,
    /// Machines whose process was killed, and those deleted in good order.
    pub killed: usize,
    /// See `killed`.
    pub deleted: usize,
    /// Times that a machine read everything back.
    pub verified: usize,
    /// Numbers that the streaming machine sent, without a gap.
    pub streamed: u64,
}

/// A machine of a tree.
struct Node {
    sandbox: Sandbox,
    depth: usize,
    /// File name and content, on disk and in memory alike.
    wrote: BTreeMap<String, String>,
}

/// xorshift64*: small, and the same everywhere for a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

impl Stress {
    /// Runs against a server that forks; every difference is an error that names the seed.
    pub fn run(&self, server: &Server) -> Result<Report> {
        self.run_trees(&server.client()).with_context(|| format!("seed {}", self.seed))
    }

    fn run_trees(&self, client: &Client) -> Result<Report> {
        let mut random = Random(self.seed | 1);
        let mut report = Report::default();
        let stream = Stream::start(client)?;
        let mut alive: Vec<Node> = Vec::new();
        let begin = Instant::now();
        while report.forks < self.forks {
            if !alive.iter().any(|node| node.depth < self.depth) {
                for cpu in [1, 2] {
                    alive.push(root(client, cpu)?);
                }
            }
            while alive.len() > MAX_ALIVE {
                end_one(&mut alive, &mut random, &mut report)?;
            }
            if random.one_in(8) {
                // The machine that streams is forked in the middle of it, and goes on.
                for child in stream.sandbox.fork(1)? {
                    ensure!(child.output("echo here")? == "here\n", "a child of the stream");
                    child.delete()?;
                    report.forks += 1;
                }
            }
            grow(&mut alive, self.depth, &mut random, &mut report)?;
            if random.one_in(3) {
                end_one(&mut alive, &mut random, &mut report)?;
            }
            if random.one_in(4) && !alive.is_empty() {
                let chosen = random.below(alive.len());
                verify(&alive[chosen], &mut report)?;
            }
            if report.forks % 100 < 4 {
                eprintln!("{:>6.0} s {report:?}", begin.elapsed().as_secs_f64());
            }
        }
        for node in &alive {
            verify(node, &mut report)?;
        }
        for node in alive {
            node.sandbox.delete()?;
        }
        report.streamed = stream.finish()?;
        Ok(report)
    }
}

fn root(client: &Client, cpu: u32) -> Result<Node> {
    let size = json!({ "template": "base", "cpu": cpu, "memory_mb": MEMORY_MB, "ttl_seconds": 0 });
    let sandbox = client.create(&size)?;
    sandbox.output("mkdir -p /var/tree /dev/shm/tree")?;
    Ok(Node { sandbox, depth: 0, wrote: BTreeMap::new() })
}

/// Has a machine write and forks it at once: what it wrote is partly in its page cache only.
fn grow(
    alive: &mut Vec<Node>,
    depth: usize,
    random: &mut Random,
    report: &mut Report,
) -> Result<()> {
    let parents: Vec<usize> = (0..alive.len()).filter(|&i| alive[i].depth < depth).collect();
    if parents.is_empty() {
        return Ok(());
    }
    let parent = &mut alive[parents[random.below(parents.len())]];
    write(parent, random)?;
    let count = 1 + random.below(4);
    let children = parent.sandbox.fork(count)?;
    let (depth, wrote) = (parent.depth + 1, parent.wrote.clone());
    report.forks += count;
    report.deepest = report.deepest.max(depth);
    // Each side goes on by itself.
    write(parent, random)?;
    for sandbox in children {
        let mut child = Node { sandbox, depth, wrote: wrote.clone() };
        if random.one_in(2) {
            write(&mut child, random)?;
        }
        alive.push(child);
    }
    Ok(())
}

/// Writes one file to the disk and one to memory, with the same name and content.
fn write(node: &mut Node, random: &mut Random) -> Result<()> {
    let (name, word) = (format!("f{:016x}", random.next()), format!("{:016x}", random.next()));
    // Some are larger than a cluster of the disk's format, some are on the disk already.
    let repeat = [1, 300, 6000][random.below(3)];
    let flush = if random.one_in(2) { "sync" } else { "true" };
    let line = format!(
        "yes {word} | head -n {repeat} | tee /var/tree/{name} > /dev/shm/tree/{name}; {flush}"
    );
    node.sandbox.output(&line)?;
    node.wrote.insert(name, format!("{word}*{repeat}"));
    Ok(())
}

/// Reads everything back, from the disk itself.
fn verify(node: &Node, report: &mut Report) -> Result<()> {
    let line = "echo 3 > /proc/sys/vm/drop_caches
        for dir in /var/tree /dev/shm/tree; do cd $dir; for f in *; do
            [ -e $f ] && echo \"$dir $f $(uniq $f)*$(wc -l < $f)\"; done; done
        dmesg | grep -iE 'rcu.*stall|BUG:|Oops:|I/O error|EXT4-fs error|EROFS.*error|hung task|corrupted' \
            | sed 's/^/kernel: /'; true";
    let text = node.sandbox.output(line)?;
    let complaints: Vec<&str> = text.lines().filter(|l| l.starts_with("kernel: ")).collect();
    ensure!(complaints.is_empty(), "{complaints:?}");
    for dir in ["/var/tree", "/dev/shm/tree"] {
        let found: BTreeMap<String, String> = text
            .lines()
            .filter_map(|line| line.strip_prefix(dir)?.trim().split_once(' '))
            .map(|(name, content)| (name.to_owned(), content.to_owned()))
            .collect();
        ensure!(found == node.wrote, "{dir} has {found:?} and not {:?}", node.wrote);
    }
    report.verified += 1;
    Ok(())
}

/// Ends one machine, in good order or by killing its process. Its relatives must not notice.
fn end_one(alive: &mut Vec<Node>, random: &mut Random, report: &mut Report) -> Result<()> {
    if alive.is_empty() {
        return Ok(());
    }
    let node = alive.swap_remove(random.below(alive.len()));
    if random.one_in(2) {
        let pid = node.sandbox.pid()?;
        std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        let noticed = || node.sandbox.status().is_ok_and(|status| status == "failed");
        ensure!(wait_until(Duration::from_secs(10), noticed), "a killed machine goes unnoticed");
        report.killed += 1;
    } else {
        report.deleted += 1;
    }
    let answer = node.sandbox.delete()?;
    ensure!(answer.status == 204, "delete answered {} {}", answer.status, answer.text());
    Ok(())
}

/// A machine that prints one number after another, and a reader that misses none.
struct Stream {
    sandbox: Sandbox,
    last: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    reader: JoinHandle<Result<()>>,
}

impl Stream {
    fn start(client: &Client) -> Result<Self> {
        let sandbox = root(client, 1)?.sandbox;
        let line = "i=0; while [ ! -e /run/over ]; do i=$((i+1)); echo $i; sleep 0.1; done";
        let body = json!({ "cmd": line, "timeout_seconds": 86_400 }).to_string();
        let response = client.patient().open(
            "POST",
            &sandbox.path("/exec/stream"),
            Some(("application/json", body.as_bytes())),
        )?;
        let (last, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, ending) = (last.clone(), over.clone());
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            for line in BufReader::new(response.into_body().into_reader()).lines() {
                let line = line?;
                let Some(data) = line.strip_prefix("data: ") else { continue };
                let data: Value = serde_json::from_str(data)?;
                text += data["chunk"].as_str().unwrap_or_default();
                while let Some((number, rest)) = text.split_once('\n') {
                    let next: u64 = number.parse()?;
                    let previous = counter.fetch_add(1, Ordering::SeqCst);
                    ensure!(next == previous + 1, "{next} came after {previous}");
                    text = rest.to_owned();
                }
            }
            ensure!(ending.load(Ordering::SeqCst), "the stream ended by itself");
            Ok(())
        });
        Ok(Self { sandbox, last, over, reader })
    }

    /// Ends it in good order; how many numbers came.
    fn finish(self) -> Result<u64> {
        self.over.store(true, Ordering::SeqCst);
        self.sandbox.output("touch /run/over")?;
        match self.reader.join() {
            Ok(read) => read?,
            Err(_) => bail!("the reader of the stream panicked"),
        }
        self.sandbox.delete()?;
        Ok(self.last.load(Ordering::SeqCst))
    }
}
