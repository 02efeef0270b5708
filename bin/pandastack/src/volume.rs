//! `pandastack volume …`: disks that outlive sandboxes.

use clap::Subcommand;
use http::Method;
use pandastack_types::{VolumeMount, VolumeName, VolumeView};
use serde::Serialize;
use time::format_description::well_known::Rfc3339;

use crate::cli::Context;
use crate::client::Client;
use crate::status::Status;
use crate::{config, output};

/// Make and delete volumes, disks that outlive sandboxes
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Make a volume and print its name
    #[command(after_help = "\
Examples:
  pandastack volume create data
  pandastack volume create models --size 8192
  pandastack sandbox create --volume data --volume models:ro

A sandbox finds it at /volumes/NAME. It takes the host's disk only for what is written to it.")]
    Create(CreateArgs),
    /// List the volumes
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  pandastack volume ls\n  pandastack volume ls --json"
    )]
    Ls,
    /// Show one volume
    #[command(
        alias = "show",
        after_help = "Examples:\n  pandastack volume get data\n  \
                      pandastack volume get data --json"
    )]
    Get(Named),
    /// Delete volumes and everything in them; refused while a sandbox has one
    #[command(after_help = "Examples:\n  pandastack volume rm data\n  \
                            pandastack volume rm data models")]
    Rm(Several),
}

/// A new volume.
#[derive(clap::Args, Clone, Debug)]
pub struct CreateArgs {
    /// Its name
    name: VolumeName,
    /// What fits in, in MiB: 1 to 65536 [default: 256]
    #[arg(long, value_name = "MB", alias = "size-mb")]
    size: Option<i64>,
}

/// A volume.
#[derive(clap::Args, Clone, Debug)]
pub struct Named {
    /// Its name
    name: VolumeName,
}

/// Some volumes.
#[derive(clap::Args, Clone, Debug)]
pub struct Several {
    /// Their names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VolumeName>,
}

/// The body of a create request.
#[derive(Serialize)]
struct CreateRequest {
    name: VolumeName,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_mb: Option<i64>,
}

/// Parses `NAME` or `NAME:ro`.
pub fn mount(text: &str) -> Result<VolumeMount, String> {
    let (name, read_only) = match text.split_once(':') {
        None => (text, false),
        Some((name, "ro")) => (name, true),
        Some((name, "rw")) => (name, false),
        Some(_) => return Err("it looks like NAME, NAME:ro or NAME:rw".to_owned()),
    };
    let name = name.parse().map_err(|error| format!("{error}"))?;
    Ok(VolumeMount { name, read_only, clone: false })
}

/// Does what the command line says.
pub async fn run(command: Command, context: Context) -> anyhow::Result<Status> {
    let client = Client::new(&config::endpoint()?)?;
    match command {
        Command::Create(CreateArgs { name, size }) => {
            let request = CreateRequest { name, size_mb: size };
            let view: VolumeView = client.send(Method::POST, "/v1/volumes", &request).await?;
            if context.json {
                output::json(&view)?;
            } else {
                output::line(view.name.as_str())?;
            }
        }
        Command::Ls => {
            let all: Vec<VolumeView> = client.get("/v1/volumes").await?;
            if context.json {
                output::json(&all)?;
            } else {
                let rows: Vec<_> = all.iter().map(row).collect();
                output::table(["NAME", "SIZE", "ON DISK", "CREATED"], &rows)?;
            }
        }
        Command::Get(Named { name }) => {
            let view: VolumeView = client.get(&format!("/v1/volumes/{name}")).await?;
            if context.json {
                output::json(&view)?;
            } else {
                output::table(["NAME", "SIZE", "ON DISK", "CREATED"], &[row(&view)])?;
            }
        }
        Command::Rm(Several { names }) => {
            for name in names {
                client.act(Method::DELETE, &format!("/v1/volumes/{name}")).await?;
            }
        }
    }
    Ok(Status::SUCCESS)
}

fn row(view: &VolumeView) -> [String; 4] {
    [
        view.name.to_string(),
        format!("{} MiB", view.size_mb),
        format!("{} MiB", view.size_bytes.div_ceil(1 << 20)),
        view.created_at.format(&Rfc3339).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_says_whether_it_is_read_only() {
        let read_only = |text| mount(text).map(|mount| mount.read_only);
        assert_eq!(read_only("data"), Ok(false));
        assert_eq!(read_only("data:rw"), Ok(false));
        assert_eq!(read_only("data:ro"), Ok(true));
        for bad in ["", ":ro", "data:", "data:x", "data:ro:ro", "../data", "a/b:ro"] {
            assert!(mount(bad).is_err(), "{bad:?}");
        }
    }
}
