//! Forks in trees, with everything checked that a fork could lose.
//!
//! Every machine of a tree has a list of what it and its ancestors wrote, to the disk and to
//! memory, before each fork that led to it. From time to time, and at the end, a machine drops its
//! caches and has to read all of it back, and must not find anything that a sibling wrote. In
//! between, machines are deleted and their processes killed at random, while one more machine
//! streams numbers without a gap and is forked as well.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::{Client, Numbers, Random, Sandbox, Server, kill, wait_until};

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

impl Stress {
    /// Runs against a server that forks; every difference is an error that names the seed.
    pub fn run(&self, server: &Server) -> Result<Report> {
        self.run_trees(&server.client()).with_context(|| format!("seed {}", self.seed))
    }

    fn run_trees(&self, client: &Client) -> Result<Report> {
        let mut random = Random::new(self.seed);
        let mut report = Report::default();
        let streaming = root(client, 1)?.sandbox;
        let numbers = Numbers::start(client, &streaming)?;
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
                for child in streaming.fork(1)? {
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
        report.streamed = numbers.finish()?;
        streaming.delete()?;
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
    let (name, word) = (format!("f{:016x}", random.draw()), format!("{:016x}", random.draw()));
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
        kill(node.sandbox.pid()?)?;
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
