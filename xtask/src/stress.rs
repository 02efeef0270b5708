//! `cargo xtask stress`: trees of forks, as long as one likes.

use anyhow::Result;
use clap::Args;
use pandastack_tests::{Options, Server, Stress};

use crate::prepare;

/// How much, and with which seed.
#[derive(Args)]
pub struct Plan {
    /// Copies to make in all
    #[arg(long, default_value_t = 2000)]
    forks: usize,
    /// Generations below a root
    #[arg(long, default_value_t = 6)]
    depth: usize,
    /// Decides everything that is random [default: the time]
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs against a server of its own and prints what happened.
pub fn run(plan: &Plan) -> Result<()> {
    prepare::packages(false)?;
    let program = prepare::program()?;
    prepare::templates(&program)?;
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed()?;
    let seed = plan.seed.unwrap_or(since.as_secs());
    println!("seed {seed}");
    let args = ["--max-sandboxes", "64"].map(str::to_owned).to_vec();
    let server = Server::start(Options { fork: true, args, ..Options::default() })?;
    server.wait_for_zygotes()?;
    let report = Stress { forks: plan.forks, depth: plan.depth, seed }.run(&server)?;
    println!("{report:?}");
    server.stop()?;
    Ok(())
}
