//! Live forks: how long a running sandbox stands still, and when its children answer.
//!
//! Every sandbox has 80 MiB of memory that it has touched, and writes to its disk before each
//! fork, so that each one has a disk layer to freeze. The pause is what the server measured
//! between stopping the source and letting it go on; the rest is taken from outside.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use super::create::{Mode, add_stages, ms};
use super::{publish, stats::Samples};

/// How much to measure.
#[derive(Args, Clone)]
pub struct Plan {
    /// Forks of each kind
    #[arg(short, default_value_t = 20)]
    n: usize,
    /// Guest memory, MiB
    #[arg(long, value_delimiter = ',', default_values_t = [256, 512, 2048])]
    memory_mb: Vec<u32>,
    /// Children per fork
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 20])]
    children: Vec<usize>,
    /// Write the report to docs/benchmarks
    #[arg(long)]
    docs: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { n: 20, memory_mb: vec![256, 512, 2048], children: vec![1, 4, 20], docs: false }
    }
}

/// Runs the whole matrix.
pub fn run(plan: &Plan) -> Result<()> {
    let server = Mode::Fork.server(&["--max-sandboxes", "64"])?;
    let client = server.client();
    let mut table = String::new();
    let mut figures = json!({ "n": plan.n });
    for &memory_mb in &plan.memory_mb {
        for &children in &plan.children {
            let size = json!({ "template": "base", "memory_mb": memory_mb, "ttl_seconds": 0 });
            let source = client.create(&size)?;
            source.output("head -c 80M /dev/urandom > /dev/shm/touched; sync")?;
            let (mut samples, mut stages) = (Samples::default(), Samples::default());
            for round in 0..plan.n {
                source.output(&format!("echo {round} >> /root/rounds; sync"))?;
                let begin = Instant::now();
                let tree = source.fork_tree(children)?;
                samples.add("fork → all children ready", ms(begin));
                ensure!(tree.children[0].output("echo hi")? == "hi\n", "a child is wrong");
                samples.add("fork → first echo of a child", ms(begin));
                ensure!(source.output("echo hi")? == "hi\n", "the source is wrong");
                add_stages(tree.server_timing.as_deref(), &mut stages);
                for child in tree.children {
                    child.delete()?;
                }
            }
            source.delete()?;
            let title = format!("{memory_mb} MiB, {children} children");
            table += &format!("\n## {title}\n\n{}", samples.table("ms"));
            table += &format!("\nAs the server saw them:\n\n{}", stages.table("ms"));
            figures[format!("{memory_mb}_{children}")] =
                json!({ "ms": samples.json(), "stages_ms": stages.json() });
            eprintln!("{title}: done");
        }
    }
    server.stop()?;
    publish("fork", &table, figures, plan.docs)
}
