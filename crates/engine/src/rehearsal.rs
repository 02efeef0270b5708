//! What a guest does before it is baked: it boots, and runs what tenants will run first.

use std::time::{Duration, Instant};

use crate::agent::{AgentClient, ExecSpec};
use crate::{BakeLog, EngineError, GuestImage};

/// For one warm-up line: importing a large library takes tens of seconds when emulated.
const LINE_DEADLINE: Duration = Duration::from_secs(180);

/// Runs the image's lines in the guest and brings it to rest.
pub(crate) async fn rehearse(
    agent: &AgentClient,
    image: &GuestImage,
    log: &BakeLog<'_>,
) -> Result<(), EngineError> {
    for line in image.preload.iter().chain(&image.warm_up) {
        run_line(agent, line, log).await?;
    }
    Ok(agent.quiesce().await?)
}

/// Runs one line in the guest; it must succeed, or the template is broken.
pub(crate) async fn run_line(
    agent: &AgentClient,
    line: &str,
    log: &BakeLog<'_>,
) -> Result<(), EngineError> {
    let begin = Instant::now();
    let spec = ExecSpec {
        shell: Some(line.to_owned()),
        timeout_ms: Some(LINE_DEADLINE.as_millis() as u64),
        ..ExecSpec::default()
    };
    let output = agent.run(spec).await?;
    log(&format!("warm-up {:>6} ms: {line}", begin.elapsed().as_millis()));
    if output.status.code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(EngineError::Ended(format!("warm-up line {line:?} failed: {said}")))
}

/// The last lines of what a guest printed, for the log of a bake that failed.
pub(crate) fn log_console(console: &str, log: &BakeLog<'_>) {
    const LINES: usize = 20;
    let tail: Vec<&str> = console.lines().rev().take(LINES).collect();
    for line in tail.into_iter().rev() {
        log(&format!("guest console: {line}"));
    }
}
