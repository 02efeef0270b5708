//! `pandastack sandbox logs`.

use clap::ValueEnum;
use http::Method;
use serde::Deserialize;

use super::resolve;
use crate::cli::Context;
use crate::client::{Client, EventReader, Reply, no_body, query};
use crate::output;
use crate::status::Status;

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack sandbox logs 1b9d
  pandastack sandbox logs 1b9d --tail 20 --follow
  pandastack sandbox logs 1b9d --stream stderr --json";

/// Which logs.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Go on with what is printed from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Only one of the streams
    #[arg(long, value_enum, default_value_t = Stream::Both)]
    stream: Stream,
}

/// Which streams.
#[derive(ValueEnum, Clone, Copy, Debug)]
enum Stream {
    Stdout,
    Stderr,
    Both,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Both => "both",
        }
    }
}

/// The data of a log event.
#[derive(Deserialize)]
struct LogEvent {
    #[serde(alias = "chunk")]
    line: String,
}

/// The data of an event that says why there is no more.
#[derive(Deserialize)]
struct ErrorEvent {
    error: String,
}

pub async fn run(client: &Client, args: Args, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &args.id).await?;
    let tail = args.tail.map(|lines| lines.to_string());
    let mut pairs = vec![("stream", args.stream.as_str())];
    if let Some(tail) = &tail {
        pairs.push(("tail", tail));
    }
    if args.follow {
        pairs.push(("follow", "true"));
    }
    let path = query(&format!("/v1/sandboxes/{id}/logs"), &pairs);
    let reply = client.open(Method::GET, &path, None, no_body()).await?;
    if args.follow { follow(reply, context).await } else { show(reply, context).await }?;
    Ok(Status::SUCCESS)
}

/// Prints the logs as they are, or line by line for programs.
async fn show(mut reply: Reply, context: Context) -> anyhow::Result<()> {
    let mut rest = Vec::new();
    while let Some(bytes) = reply.chunk().await? {
        if !context.json {
            output::bytes(&bytes)?;
            continue;
        }
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            print_line(&String::from_utf8_lossy(&line), context)?;
        }
    }
    if !rest.is_empty() {
        print_line(&String::from_utf8_lossy(&rest), context)?;
    }
    Ok(())
}

async fn follow(reply: Reply, context: Context) -> anyhow::Result<()> {
    let mut events = EventReader::new(reply);
    while let Some(event) = events.next().await? {
        if event.name == "error" {
            let ErrorEvent { error } = serde_json::from_str(&event.data)?;
            anyhow::bail!(error);
        }
        // Other events say nothing about the sandbox's output.
        if let Ok(LogEvent { line }) = serde_json::from_str(&event.data) {
            print_line(&line, context)?;
        }
    }
    Ok(())
}

fn print_line(line: &str, context: Context) -> anyhow::Result<()> {
    let line = line.strip_suffix('\n').unwrap_or(line);
    if context.json {
        output::line(&serde_json::json!({"line": line}).to_string())
    } else {
        output::line(line)
    }
}
