//! `pandastack sandbox egress` and `egress-log`: what a sandbox may reach, and what it tried to.

use std::fmt::Write;

use http::Method;
use pandastack_policy::Policy;
use pandastack_types::{EgressEntry, EgressKind, EgressVerdict};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;

use super::resolve;
use crate::cli::Context;
use crate::client::{Client, EventReader, no_body, query};
use crate::egress::{Allowed, only, policy, rule};
use crate::output;
use crate::status::Status;

/// Examples of `sandbox egress`.
pub const EXAMPLES: &str = "\
Examples:
  pandastack sandbox egress 1b9d
  pandastack sandbox egress 1b9d --allow pypi.org:443 --allow files.pythonhosted.org:443
  pandastack sandbox egress 1b9d --allow '*.example.com' --allow 203.0.113.0/24
  pandastack sandbox egress 1b9d --policy '{\"allow\":[{\"host\":\"*\"}],\"max_connections\":10}'
  pandastack sandbox egress 1b9d --policy @policy.json
  pandastack sandbox egress 1b9d --none

What is set replaces everything that was allowed. It is in force when the command returns, and
connections that it forbids are closed. The policy in force is printed.";

/// Examples of `sandbox egress-log`.
pub const LOG_EXAMPLES: &str = "\
Examples:
  pandastack sandbox egress-log 1b9d
  pandastack sandbox egress-log 1b9d --tail 20 --follow
  pandastack sandbox egress-log 1b9d --follow --json | jq 'select(.verdict == \"deny\")'

A line per decision: time, verdict, what it was, where to, the rule that decided, and why.";

/// What a sandbox may reach.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    #[command(flatten)]
    change: Change,
}

/// At most one way to say it; without any, the policy is only shown.
#[derive(clap::Args, Clone, Debug)]
#[group(multiple = false)]
struct Change {
    /// Let it reach this and nothing else: a host such as `pypi.org:443` or `*.example.com`, or a
    /// network such as `203.0.113.0/24`; may be repeated
    #[arg(long, value_name = "HOST[:PORT]|CIDR", value_parser = rule)]
    allow: Vec<Allowed>,
    /// Set this policy: JSON, or a file with it
    #[arg(long, value_name = "POLICY", value_parser = policy)]
    policy: Option<Policy>,
    /// Let it reach nothing
    #[arg(long)]
    none: bool,
}

impl Change {
    fn policy(self) -> anyhow::Result<Option<Policy>> {
        match self {
            Self { none: true, .. } => Ok(Some(Policy::default())),
            Self { policy: Some(policy), .. } => Ok(Some(policy)),
            Self { allow, .. } if !allow.is_empty() => only(&allow).map(Some),
            _ => Ok(None),
        }
    }
}

/// Which part of the log.
#[derive(clap::Args, Clone, Debug)]
pub struct LogArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Go on with what is decided from now on
    #[arg(short, long)]
    follow: bool,
    /// Only the last N decisions
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Only what came after the decision with this number
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
}

/// An entry of the log.
#[derive(Serialize, Deserialize)]
struct Line {
    number: u64,
    #[serde(flatten)]
    entry: EgressEntry,
}

/// The answer to a request for the log.
#[derive(Deserialize)]
struct Log {
    entries: Vec<Line>,
}

pub async fn run(client: &Client, args: Args) -> anyhow::Result<Status> {
    let change = args.change.policy()?;
    let id = resolve(client, &args.id).await?;
    let path = format!("/v1/sandboxes/{id}/egress");
    let in_force: Policy = match change {
        None => client.get(&path).await?,
        Some(policy) => client.send(Method::PUT, &path, &policy).await?,
    };
    // A policy is JSON for people as well.
    output::json(&in_force)?;
    Ok(Status::SUCCESS)
}

pub async fn log(client: &Client, args: LogArgs, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &args.id).await?;
    let numbers = [("tail", args.tail), ("after", args.after)];
    let numbers = numbers.map(|(name, number)| (name, number.map(|number| number.to_string())));
    let mut pairs: Vec<_> =
        numbers.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?))).collect();
    if args.follow {
        pairs.push(("follow", "true"));
    }
    let path = query(&format!("/v1/sandboxes/{id}/egress/log"), &pairs);
    if !args.follow {
        let log: Log = client.get(&path).await?;
        log.entries.iter().try_for_each(|line| print(line, context))?;
        return Ok(Status::SUCCESS);
    }
    let reply = client.open(Method::GET, &path, None, no_body()).await?;
    let mut events = EventReader::new(reply);
    while let Some(event) = events.next().await? {
        // Other events say nothing about the sandbox's network.
        if let Ok(line) = serde_json::from_str(&event.data) {
            print(&line, context)?;
        }
    }
    Ok(Status::SUCCESS)
}

fn print(line: &Line, context: Context) -> anyhow::Result<()> {
    if context.json {
        return output::line(&serde_json::to_string(line)?);
    }
    output::line(&readable(&line.entry))
}

/// A decision on one line. What a guest had a say in is shown without what moves a terminal.
fn readable(entry: &EgressEntry) -> String {
    let time = entry.time.replace_nanosecond(0).unwrap_or(entry.time);
    let verdict = match entry.verdict {
        EgressVerdict::Allow => "allow",
        EgressVerdict::Deny => "deny",
        EgressVerdict::Close => "close",
    };
    let kind = match entry.kind {
        EgressKind::Dns => "dns",
        EgressKind::Tcp => "tcp",
        EgressKind::Udp => "udp",
        EgressKind::Icmp => "icmp",
        EgressKind::Http => "http",
        EgressKind::Other => "other",
    };
    let rule = entry.rule.as_deref().unwrap_or("-");
    let mut text = format!(
        "{}  {verdict:5}  {kind:5}  {:40}  {:8}  {}",
        time.format(&Rfc3339).unwrap_or_default(),
        place(entry),
        plain(rule),
        plain(&entry.reason),
    );
    if let (Some(up), Some(down)) = (entry.bytes_up, entry.bytes_down) {
        // Writing to a string does not fail.
        let _ = write!(text, " ({up} bytes up, {down} down)");
    }
    if entry.unshown > 0 {
        let _ = write!(text, " (and {} more)", entry.unshown);
    }
    text
}

/// Where to, as far as it is known: `pypi.org (203.0.113.7) :443`.
fn place(entry: &EgressEntry) -> String {
    let mut parts = Vec::new();
    parts.extend(entry.name.as_deref().map(plain));
    parts.extend(entry.address.map(|address| match entry.name {
        Some(_) => format!("({address})"),
        None => address.to_string(),
    }));
    parts.extend(entry.port.map(|port| format!(":{port}")));
    if parts.is_empty() { "-".to_owned() } else { parts.join(" ") }
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: &str) -> EgressEntry {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_decision_is_a_line_that_can_be_read() {
        let refused = entry(
            r#"{"time":"2026-01-02T03:04:05.678Z","kind":"dns","verdict":"deny",
                "name":"evil\u001b[2J.test","reason":"no rule allows\nthis name","unshown":7}"#,
        );
        let line = readable(&refused);
        assert!(
            line.starts_with("2026-01-02T03:04:05Z  deny   dns    evil\u{fffd}[2J.test  "),
            "{line}"
        );
        assert!(
            line.ends_with("  -         no rule allows\u{fffd}this name (and 7 more)"),
            "{line}"
        );
        let over = entry(
            r#"{"time":"2026-01-02T03:04:05Z","kind":"tcp","verdict":"close","name":"pypi.org",
                "address":"203.0.113.7","port":443,"rule":"allow/0","reason":"the guest closed it",
                "bytes_up":12,"bytes_down":3456}"#,
        );
        let line = readable(&over);
        assert!(line.contains("close  tcp    pypi.org (203.0.113.7) :443  "), "{line}");
        assert!(line.ends_with("allow/0   the guest closed it (12 bytes up, 3456 down)"), "{line}");
        let raw = entry(
            r#"{"time":"2026-01-02T03:04:05Z","kind":"udp","verdict":"deny","address":"2001:db8::1",
                "port":53,"reason":"x"}"#,
        );
        assert!(readable(&raw).contains("udp    2001:db8::1 :53  "));
        let nowhere = entry(
            r#"{"time":"2026-01-02T03:04:05Z","kind":"other","verdict":"deny","reason":"x"}"#,
        );
        assert!(readable(&nowhere).contains("other  -  "));
    }
}
