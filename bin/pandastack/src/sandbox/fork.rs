//! Copies of a running sandbox.

use std::collections::BTreeMap;

use http::Method;
use pandastack_policy::Policy;
use pandastack_types::ForkView;
use serde::Serialize;

use super::resolve;
use crate::cli::{Context, key_value};
use crate::client::Client;
use crate::egress::EgressArgs;
use crate::output;
use crate::status::{Status, report};

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack sandbox fork 1b9d
  pandastack sandbox fork 1b9d -n 5 --metadata try=a
  for id in $(pandastack sandbox fork 1b9d -n 3); do pandastack sandbox exec $id -- ./try; done

The copies have everything of the sandbox at one instant, also its running processes; it goes on
as it was, running or paused. Their ids are printed, one per line.";

/// What to copy.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Its id, or a beginning of it that no other has
    id: String,
    /// How many copies, up to 100
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 1)]
    count: u32,
    /// Seconds until they are ended; 0 for no limit [default: as the sandbox was given]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// A label on top of the sandbox's own; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    metadata: Vec<(String, String)>,
    #[command(flatten)]
    egress: EgressArgs,
}

/// The body of a fork request.
#[derive(Serialize)]
struct ForkRequest<'a> {
    count: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Policy>,
}

pub async fn run(client: &Client, args: &Args, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &args.id).await?;
    let request = ForkRequest {
        count: args.count,
        ttl_seconds: args.ttl,
        metadata: args.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        egress: args.egress.policy()?,
    };
    let path = format!("/v1/sandboxes/{id}/fork");
    let forked: ForkView = client.send(Method::POST, &path, &request).await?;
    if context.json {
        output::json(&forked)?;
    } else {
        for child in &forked.children {
            output::line(&child.id.to_string())?;
        }
    }
    let mut status = Status::SUCCESS;
    for failure in &forked.errors {
        let error = anyhow::anyhow!("copy {} is missing: {}", failure.index, failure.err);
        status = report(&error, context.json);
    }
    Ok(status)
}
