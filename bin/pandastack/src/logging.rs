//! The log: what happens inside, on standard error.

use std::io::{IsTerminal, stderr};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use crate::cli::Global;
use crate::terminal::LogWriter;

/// Turns the log on. `default` is what is logged when nobody asks for something else.
pub fn start(options: &Global, default: &str) -> anyhow::Result<()> {
    let filter = options.log.as_deref().unwrap_or(default);
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("{filter:?} is no log filter"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(|| LogWriter);
    if options.log_json {
        log.json().init()
    } else {
        log.init()
    }
    Ok(())
}
