//! `cargo xtask nested`: a machine that has KVM, on a host that has none.
//!
//! QEMU emulates an AMD processor with its virtualisation, a Debian kernel boots in it, and its
//! `/dev/kvm` is a true one. That machine is called *level 1*; what a monitor runs in it is level 2.
//!
//! ```text
//! host    cargo xtask nested ── QEMU (TCG) ──┐  disks: root, job, shares, scratch, out
//! level 1            init.sh ▶ main.sh ▶ COMMAND  ── output, control ▶ host
//! level 2                                └─ /dev/kvm ── guests
//! ```
//!
//! What is made once is kept in `target/nested`: see [`base`] and [`share`].

mod base;
mod machine;
mod patience;
mod process;
mod qemu;
mod share;
mod workdir;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::run::workspace;

pub use machine::Machine;
pub use share::Share;

const SELF_TEST: &str = include_str!("self_test.py");

/// What `cargo xtask nested` is told.
#[derive(Args)]
pub struct Arguments {
    /// Processors of level 1
    #[arg(long, default_value_t = Machine::default().cpus)]
    smp: u32,
    /// Memory of level 1, in MiB
    #[arg(long, default_value_t = Machine::default().memory_mb)]
    memory: u32,
    /// Lets level 1's clock count instructions, so that times repeat; one processor
    #[arg(long)]
    icount: bool,
    /// A folder or file that is /share/NAME in there, read-only; its own name unless another is given
    #[arg(long, value_name = "PATH[:NAME]")]
    share: Vec<Share>,
    /// A variable of the command's environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Seconds that the command may take
    #[arg(long, default_value_t = Machine::default().timeout.as_secs())]
    timeout: u64,
    /// Where to put what the command leaves in /out
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tries what level 1 promises, instead of a command
    #[arg(long)]
    self_test: bool,
    /// The command, run as root in /scratch
    #[arg(last = true, required_unless_present = "self_test", conflicts_with = "self_test")]
    command: Vec<String>,
}

/// Runs the command and ends with its status.
pub fn run(arguments: &Arguments) -> Result<()> {
    let machine = Machine {
        cpus: if arguments.icount { 1 } else { arguments.smp },
        memory_mb: arguments.memory,
        icount: arguments.icount,
        shares: arguments.share.clone(),
        env: arguments.env.clone(),
        timeout: Duration::from_secs(arguments.timeout),
        out: arguments.out.clone(),
    };
    let self_test = ["python3", "-c", SELF_TEST].map(str::to_owned);
    let command = if arguments.self_test { &self_test[..] } else { &arguments.command };
    let outcome = machine.run(command, &mut io::stdout())?;
    eprintln!(
        "nested: status {}, command after {:.1} s, {:.1} s in all",
        outcome.status,
        outcome.boot.as_secs_f64(),
        outcome.elapsed.as_secs_f64()
    );
    std::process::exit(outcome.status);
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if is_variable(name) => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must look like NAME=VALUE".to_owned()),
    }
}

fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The folder of everything that is kept between runs.
fn cache() -> Result<PathBuf> {
    let dir = workspace().join("target/nested");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Names things in that folder.
fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_names_that_a_shell_takes() {
        assert_eq!(parse_variable("A_1=b=c").unwrap(), ("A_1".into(), "b=c".into()));
        for bad in ["A", "=b", "1A=b", "A-B=c", "A B=c"] {
            assert!(parse_variable(bad).is_err(), "{bad}");
        }
    }
}
