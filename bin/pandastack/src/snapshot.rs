//! `pandastack snapshot …`: sandboxes of one instant, kept on disk.

use clap::Subcommand;
use http::Method;
use pandastack_types::{SnapshotId, SnapshotList, SnapshotView};
use time::format_description::well_known::Rfc3339;

use crate::cli::Context;
use crate::client::Client;
use crate::status::Status;
use crate::{config, output, prefix};

const COLUMNS: [&str; 6] = ["ID", "SANDBOX", "TEMPLATE", "ON DISK", "IN USE", "CREATED"];

/// List and delete snapshots, which outlive their sandboxes
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List the snapshots, newest first
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  pandastack snapshot ls
  pandastack snapshot ls --json

One is made by `pandastack sandbox snapshot ID`, and used by `pandastack sandbox create --from-snapshot ID`."
    )]
    Ls,
    /// Show one snapshot
    #[command(after_help = "Examples:\n  pandastack snapshot get 77aa\n  \
                            pandastack snapshot get 77aa --json")]
    Get {
        /// Its id, or a beginning of it that no other has
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Delete snapshots; the sandboxes that were made of them stay
    #[command(after_help = "Examples:\n  pandastack snapshot rm 77aa\n  \
                            pandastack snapshot rm 77aa 1b9d")]
    Rm {
        /// Their ids, or beginnings of them that no others have
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
}

/// Does what the command line says.
pub async fn run(command: Command, context: Context) -> anyhow::Result<Status> {
    let client = Client::new(&config::endpoint()?)?;
    match command {
        Command::Ls => {
            let all: SnapshotList = client.get("/v1/snapshots").await?;
            if context.json {
                output::json(&all.snapshots)?;
            } else {
                let rows: Vec<_> = all.snapshots.iter().map(row).collect();
                output::table(COLUMNS, &rows)?;
            }
        }
        Command::Get { id } => {
            let id = resolve(&client, &id).await?;
            let view: SnapshotView = client.get(&format!("/v1/snapshots/{id}")).await?;
            if context.json {
                output::json(&view)?;
            } else {
                output::table(COLUMNS, &[row(&view)])?;
            }
        }
        Command::Rm { ids } => {
            for id in ids {
                let id = resolve(&client, &id).await?;
                client.act(Method::DELETE, &format!("/v1/snapshots/{id}")).await?;
            }
        }
    }
    Ok(Status::SUCCESS)
}

/// The snapshot that `text` means: a whole id, or the beginning of exactly one.
async fn resolve(client: &Client, text: &str) -> anyhow::Result<SnapshotId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let all: SnapshotList = client.get("/v1/snapshots").await?;
    prefix::meant("snapshot", text, all.snapshots.iter().map(|view| view.id))
}

fn row(view: &SnapshotView) -> [String; 6] {
    [
        view.id.to_string(),
        view.sandbox_id.to_string(),
        view.template.to_string(),
        format!("{} MiB", view.size_bytes.div_ceil(1 << 20)),
        view.references.to_string(),
        view.created_at.format(&Rfc3339).unwrap_or_default(),
    ]
}
