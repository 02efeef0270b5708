//! `pandastack sandbox ports`, `expose`, `unexpose` and `url`: servers in a sandbox, seen from
//! outside.

use http::Method;
use pandastack_types::{PortView, PreviewTokenView};
use serde::Serialize;

use super::{One, resolve};
use crate::cli::Context;
use crate::client::Client;
use crate::output;
use crate::status::Status;

/// Examples of `sandbox ports`.
pub const EXAMPLES: &str = "\
Examples:
  pandastack sandbox ports 1b9d
  pandastack sandbox ports 1b9d --json | jq -r '.[].preview_url'

What listens in the sandbox, and what somebody has listed with `sandbox expose`.";

/// Examples of `sandbox expose`.
pub const EXPOSE_EXAMPLES: &str = "\
Examples:
  pandastack sandbox expose 1b9d 8000 --label web
  pandastack sandbox expose 1b9d 8000 --public   # anybody who knows the address may look
  pandastack sandbox unexpose 1b9d 8000          # private again

A port is private until it is exposed with --public: it needs the API key, a token, or an address made
by `sandbox url`. The server in the sandbox may listen on 127.0.0.1. The port's address is printed.";

/// Examples of `sandbox url`.
pub const URL_EXAMPLES: &str = "\
Examples:
  pandastack sandbox url 1b9d 8000
  curl -L -b '' \"$(pandastack sandbox url 1b9d 8000 --ttl 60)\"
  pandastack sandbox url 1b9d 8000 --path /static --json

Whoever has the address may open the port until its time is up. It is for browsers: the first visit
puts the permission in a cookie. `proxy`-style clients use \"url\" of the JSON instead.";

/// A port to list.
#[derive(clap::Args, Clone, Debug)]
pub struct ExposeArgs {
    #[command(flatten)]
    named: Named,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    /// Let anybody reach it, without a key
    #[arg(long)]
    public: bool,
}

/// A port of a sandbox.
#[derive(clap::Args, Clone, Debug)]
pub struct Named {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// A TCP port in it
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// An address to make.
#[derive(clap::Args, Clone, Debug)]
pub struct UrlArgs {
    #[command(flatten)]
    named: Named,
    /// Seconds until it ends, a week at most
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 3600,
        value_parser = clap::value_parser!(u32).range(1..=604_800)
    )]
    ttl: u32,
    /// Let it open this path and those below only; may be repeated
    #[arg(long, value_name = "PATH")]
    path: Vec<String>,
}

#[derive(Serialize)]
struct ExposeRequest<'a> {
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<&'a str>,
    public: bool,
}

#[derive(Serialize)]
struct UrlRequest<'a> {
    port: u16,
    ttl_seconds: u32,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    paths: &'a [String],
}

pub async fn list(client: &Client, one: &One, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &one.id).await?;
    let ports: Vec<PortView> = client.get(&format!("/v1/sandboxes/{id}/ports")).await?;
    if context.json {
        output::json(&ports)?;
        return Ok(Status::SUCCESS);
    }
    let rows: Vec<_> = ports.iter().map(row).collect();
    output::table(["PORT", "LISTENING", "ACCESS", "SOURCE", "LABEL", "URL"], &rows)?;
    Ok(Status::SUCCESS)
}

fn row(port: &PortView) -> [String; 6] {
    [
        port.port.to_string(),
        if port.listening { "yes" } else { "no" }.to_owned(),
        if port.public { "public" } else { "private" }.to_owned(),
        port.source.as_str().to_owned(),
        port.label.clone().unwrap_or_default(),
        address(port).to_owned(),
    ]
}

/// The address that a person wants.
fn address(port: &PortView) -> &str {
    port.preview_url.as_deref().unwrap_or(&port.proxy_url)
}

pub async fn expose(
    client: &Client,
    args: &ExposeArgs,
    context: Context,
) -> anyhow::Result<Status> {
    let id = resolve(client, &args.named.id).await?;
    let request =
        ExposeRequest { port: args.named.port, label: args.label.as_deref(), public: args.public };
    let path = format!("/v1/sandboxes/{id}/ports");
    let port: PortView = client.send(Method::POST, &path, &request).await?;
    if context.json {
        output::json(&port)?;
    } else {
        output::line(address(&port))?;
    }
    Ok(Status::SUCCESS)
}

pub async fn unexpose(client: &Client, named: &Named) -> anyhow::Result<Status> {
    let id = resolve(client, &named.id).await?;
    client.act(Method::DELETE, &format!("/v1/sandboxes/{id}/ports/{}", named.port)).await?;
    Ok(Status::SUCCESS)
}

pub async fn url(client: &Client, args: &UrlArgs, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &args.named.id).await?;
    let request = UrlRequest { port: args.named.port, ttl_seconds: args.ttl, paths: &args.path };
    let path = format!("/v1/sandboxes/{id}/preview-token");
    let token: PreviewTokenView = client.send(Method::POST, &path, &request).await?;
    if context.json {
        output::json(&token)?;
    } else {
        output::line(token.preview_url.as_deref().unwrap_or(&token.url))?;
    }
    Ok(Status::SUCCESS)
}
