//! Creating, listing, changing and ending sandboxes.

use std::collections::BTreeMap;

use clap::Args;
use http::Method;
use pandastack_policy::Policy;
use pandastack_types::{Lifecycle, SandboxView, Size, SnapshotId, SnapshotView, VolumeMount};
use serde::Serialize;
use time::OffsetDateTime;

use super::classes::{self, Wanted};
use super::{delete, resolve};
use crate::cli::{Context, key_value};
use crate::client::Client;
use crate::egress::EgressArgs;
use crate::output;
use crate::status::{Status, report};
use crate::volume::mount;

/// Examples of `sandbox create`.
pub const CREATE_EXAMPLES: &str = "\
Examples:
  pandastack sandbox create
  pandastack sandbox create --template code-interpreter --memory 1024 --ttl 600
  pandastack sandbox create --cpu 2 --memory 2048 --disk 8192   # a size of its own
  id=$(pandastack sandbox create --metadata job=42)
  pandastack sandbox create --allow pypi.org:443 --allow files.pythonhosted.org:443
  pandastack sandbox create --volume data --volume models:ro   # see `pandastack volume`
  pandastack sandbox create --from-snapshot $(pandastack sandbox snapshot 1b9d)

The first sandbox of a size waits while the server prepares it, and sees how far that is; all others
are there as soon as those of the template's own size.";

/// Examples of `sandbox snapshot`.
pub const SNAPSHOT_EXAMPLES: &str = "\
Examples:
  pandastack sandbox snapshot 1b9d
  pandastack sandbox create --from-snapshot $(pandastack sandbox snapshot 1b9d)

The sandbox goes on as it was; the snapshot outlives it. Its id is printed.";

/// Examples of `sandbox hibernate`.
pub const HIBERNATE_EXAMPLES: &str = "\
Examples:
  pandastack sandbox hibernate 1b9d
  pandastack sandbox exec 1b9d -- uptime   # wakes it

Memory, processes and files are kept, also when the server stops or is killed.";

/// What a new sandbox is like.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The template it is a copy of
    #[arg(long, value_name = "NAME", default_value = "base")]
    pub template: String,
    /// The snapshot that it is made of, in place of a template
    #[arg(long, value_name = "ID", conflicts_with_all = ["template", "cpu", "memory", "disk"])]
    pub from_snapshot: Option<SnapshotId>,
    /// vCPUs [default: the template's]
    #[arg(long, value_name = "N")]
    pub cpu: Option<i64>,
    /// Guest memory in MiB [default: the template's]
    #[arg(long, value_name = "MB", alias = "memory-mb")]
    pub memory: Option<i64>,
    /// Writable disk in MiB, not less than the template's [default: the template's]
    #[arg(long, value_name = "MB", alias = "disk-mb")]
    pub disk: Option<i64>,
    /// Seconds until it is ended; 0 for no limit [default: the server's]
    #[arg(long, value_name = "SECONDS")]
    pub ttl: Option<u64>,
    /// Keep it until it is killed; it hibernates when the server stops
    #[arg(long)]
    pub persistent: bool,
    /// Seconds without use after which it hibernates; 0 for never [default: the server's for
    /// persistent ones, else never]
    #[arg(long, value_name = "SECONDS")]
    pub idle_timeout: Option<u64>,
    /// A label of yours; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub metadata: Vec<(String, String)>,
    /// A volume that it has at /volumes/NAME, to be written to or, with `:ro`, only read; may be
    /// repeated
    #[arg(long, value_name = "NAME[:ro]", value_parser = mount, conflicts_with = "from_snapshot")]
    pub volume: Vec<VolumeMount>,
    #[command(flatten)]
    pub egress: EgressArgs,
}

/// How long a sandbox may live.
#[derive(Args, Clone, Debug)]
pub struct TtlArgs {
    /// Its id, or a beginning of it that no other has
    id: String,
    /// Seconds from now until it is ended; 0 for no limit
    seconds: u64,
}

/// The body of a create request.
#[derive(Serialize)]
struct CreateRequest<'a> {
    template: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_snapshot: Option<SnapshotId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mb: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_mb: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
    persistent: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<u64>,
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    volumes: &'a [VolumeMount],
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Policy>,
}

/// Creates a sandbox.
pub async fn create(client: &Client, args: &CreateArgs) -> anyhow::Result<SandboxView> {
    let request = CreateRequest {
        template: &args.template,
        from_snapshot: args.from_snapshot,
        cpu: args.cpu,
        memory_mb: args.memory,
        disk_mb: args.disk,
        ttl_seconds: args.ttl,
        persistent: args.persistent,
        idle_timeout: args.idle_timeout,
        metadata: args.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        volumes: &args.volume,
        egress: args.egress.policy()?,
    };
    let CreateRequest { template, cpu, memory_mb, disk_mb, .. } = request;
    let wanted = Wanted { template, cpu, memory_mb, disk_mb };
    Ok(classes::create(client, wanted, &request).await?)
}

pub async fn create_and_print(
    client: &Client,
    args: &CreateArgs,
    context: Context,
) -> anyhow::Result<Status> {
    let view = create(client, args).await?;
    if context.json {
        output::json(&view)?;
    } else {
        // Only the id, so that a script can keep it.
        output::line(&view.id.to_string())?;
    }
    Ok(Status::SUCCESS)
}

pub async fn list(client: &Client, context: Context) -> anyhow::Result<Status> {
    let all: Vec<SandboxView> = client.get("/v1/sandboxes").await?;
    if context.json {
        output::json(&all)?;
        return Ok(Status::SUCCESS);
    }
    let now = OffsetDateTime::now_utc();
    let rows: Vec<_> = all.iter().map(|view| row(view, now)).collect();
    output::table(["ID", "TEMPLATE", "STATUS", "CPU", "MEMORY", "AGE", "TTL", "ISOLATION"], &rows)?;
    Ok(Status::SUCCESS)
}

fn row(view: &SandboxView, now: OffsetDateTime) -> [String; 8] {
    [
        view.id.to_string(),
        view.template.to_string(),
        view.status.to_string(),
        view.cpu.to_string(),
        format!("{} MiB", view.memory_mb),
        seconds((now - view.created_at).whole_seconds().unsigned_abs()),
        if view.ttl_seconds == 0 { "-".to_owned() } else { seconds(view.ttl_seconds) },
        view.isolation.as_str().to_owned(),
    ]
}

pub async fn get(client: &Client, id: &str, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, id).await?;
    let view: SandboxView = client.get(&format!("/v1/sandboxes/{id}")).await?;
    if context.json {
        output::json(&view)?;
        return Ok(Status::SUCCESS);
    }
    let metadata: Vec<_> = view.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let ended = view.end_reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    let rows = [
        ["id".to_owned(), view.id.to_string()],
        ["template".to_owned(), view.template.to_string()],
        ["status".to_owned(), format!("{}{ended}", view.status)],
        ["size".to_owned(), size(&view)],
        ["created".to_owned(), format!("{} in {} ms", view.boot_mode, view.boot_ms)],
        ["ttl".to_owned(), format!("{} s", view.ttl_seconds)],
        ["persistent".to_owned(), view.persistent.to_string()],
        ["engine".to_owned(), view.engine],
        ["isolation".to_owned(), view.isolation.as_str().to_owned()],
        ["jail".to_owned(), view.jail.as_str().to_owned()],
        ["egress".to_owned(), summary(&view.egress)],
        ["volumes".to_owned(), volumes(&view.volumes)],
        ["metadata".to_owned(), metadata.join(" ")],
    ];
    output::table(["FIELD", "VALUE"], &rows)?;
    Ok(Status::SUCCESS)
}

/// vCPUs, memory and disk in words.
fn size(view: &SandboxView) -> String {
    let SandboxView { cpu, memory_mb, disk_mb, .. } = *view;
    Size { cpu, memory_mb, disk_mb }.to_string()
}

/// Volumes in a few words.
fn volumes(volumes: &[VolumeMount]) -> String {
    let word = |mount: &VolumeMount| match (mount.clone, mount.read_only) {
        (true, _) => format!("{} (a copy)", mount.name),
        (false, true) => format!("{} (read-only)", mount.name),
        (false, false) => mount.name.to_string(),
    };
    volumes.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// A policy in a few words.
fn summary(policy: &Policy) -> String {
    match (policy.allow().len(), policy.deny().len()) {
        (0, _) => "none".to_owned(),
        (allow, 0) => format!("{allow} allowed"),
        (allow, deny) => format!("{allow} allowed, {deny} denied"),
    }
}

/// Ends every sandbox it can, and fails if there was one that it could not end.
pub async fn kill(client: &Client, ids: &[String], context: Context) -> anyhow::Result<Status> {
    let mut status = Status::SUCCESS;
    for text in ids {
        let ended = async { delete(client, resolve(client, text).await?).await }.await;
        if let Err(error) = ended {
            status = report(&error.context(format!("cannot kill {text}")), context.json);
        }
    }
    Ok(status)
}

/// Pauses, resumes, hibernates or wakes.
pub async fn act(client: &Client, id: &str, verb: &str) -> anyhow::Result<Status> {
    let id = resolve(client, id).await?;
    client.act(Method::POST, &format!("/v1/sandboxes/{id}/{verb}")).await?;
    Ok(Status::SUCCESS)
}

pub async fn snapshot(client: &Client, id: &str, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, id).await?;
    let path = format!("/v1/sandboxes/{id}/snapshots");
    let view: SnapshotView = client.send(Method::POST, &path, &serde_json::json!({})).await?;
    if context.json {
        output::json(&view)?;
    } else {
        output::line(&view.id.to_string())?;
    }
    Ok(Status::SUCCESS)
}

pub async fn set_ttl(client: &Client, args: &TtlArgs, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &args.id).await?;
    let change = serde_json::json!({"ttl_seconds": args.seconds});
    let path = format!("/v1/sandboxes/{id}/lifecycle");
    let lifecycle: Lifecycle = client.send(Method::PATCH, &path, &change).await?;
    if context.json {
        output::json(&lifecycle)?;
    }
    Ok(Status::SUCCESS)
}

/// A duration with its one largest unit.
fn seconds(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        let shown: Vec<_> = [0, 119, 120, 7199, 7200, 172_800].map(seconds).into();
        assert_eq!(shown, ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
